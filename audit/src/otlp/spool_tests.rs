//! What is appended is read in order, within the bound, whatever the process or the disk does.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::disk_tests::SmallDisk;

const MAX: u64 = 1 << 20;

fn frame(number: u64, bytes: usize) -> Frame {
    Frame { body: vec![u8::try_from(number % 251).unwrap(); bytes], records: 1, first: number, last: number }
}

fn opened(folder: &Path) -> Spool {
    Spool::open(folder, MAX, b"resource".to_vec()).unwrap()
}

/// Takes everything that is there; the numbers of its frames.
fn drained(spool: &mut Spool, dropped: &mut Dropped) -> Vec<u64> {
    let mut numbers = Vec::new();
    while let Some((parcel, place)) = spool.read(1, 1 << 20, dropped) {
        assert_eq!(parcel.resource, b"resource");
        assert!(parcel.frame.body.iter().all(|byte| u64::from(*byte) == parcel.frame.first % 251));
        numbers.push(parcel.frame.first);
        spool.taken(place, &parcel.frame);
    }
    numbers
}

#[test]
fn frames_come_in_order_across_files_and_processes_and_each_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut dropped = Dropped::default();
    let mut spool = opened(folder.path());
    (1..=100).for_each(|number| spool.append(&frame(number, 8_000), &mut dropped).unwrap());
    let (parcel, place) = spool.read(7, 1 << 20, &mut dropped).unwrap();
    assert!(parcel.own);
    assert_eq!((parcel.frame.records, parcel.frame.first, parcel.frame.last), (7, 1, 7));
    spool.taken(place, &parcel.frame);
    assert_eq!(spool.records(), 93);
    drop(spool);

    let mut spool = opened(folder.path());
    assert_eq!(spool.records(), 93);
    (101..=110).for_each(|number| spool.append(&frame(number, 8_000), &mut dropped).unwrap());
    assert_eq!(drained(&mut spool, &mut dropped), (8..=110).collect::<Vec<u64>>());
    assert_eq!((spool.records(), dropped), (0, Dropped::default()));
    drop(spool);
    assert_eq!(drained(&mut opened(folder.path()), &mut dropped), [0_u64; 0]);
    let left = segments(folder.path()).unwrap();
    assert!(left.is_empty(), "what was taken leaves no file: {left:?}");
}

#[test]
fn a_parcel_is_of_one_process_and_within_its_bounds_but_of_one_frame_at_least() {
    let folder = tempfile::tempdir().unwrap();
    let mut dropped = Dropped::default();
    opened(folder.path()).append(&frame(1, 10), &mut dropped).unwrap();
    let mut spool = opened(folder.path());
    (2..=5).for_each(|number| spool.append(&frame(number, 100), &mut dropped).unwrap());
    let (parcel, place) = spool.read(100, 1 << 20, &mut dropped).unwrap();
    assert_eq!((parcel.frame.records, parcel.own), (1, false));
    spool.taken(place, &parcel.frame);
    assert_eq!(spool.read(100, 250, &mut dropped).unwrap().0.frame.records, 2);
    assert_eq!(spool.read(3, 1 << 20, &mut dropped).unwrap().0.frame.records, 3);
    assert_eq!(spool.read(0, 0, &mut dropped).unwrap().0.frame.records, 1);
}

#[test]
fn beyond_the_bound_the_oldest_go_and_are_counted_and_the_newest_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mut dropped = Dropped::default();
    let mut spool = opened(folder.path());
    for number in 1..=1_000 {
        spool.append(&frame(number, 4_000), &mut dropped).unwrap();
        assert!(spool.bytes() <= MAX);
        let on_disk: u64 =
            segments(folder.path()).unwrap().iter().map(|(_, path)| path.metadata().unwrap().len()).sum();
        assert_eq!(on_disk, spool.bytes());
    }
    let kept = spool.records();
    assert!(kept * 4_000 > MAX * 13 / 16, "{kept} kept");
    assert_eq!(dropped, Dropped { records: 1_000 - kept, own: Some((1, 1_000 - kept)) });
    let left = drained(&mut spool, &mut dropped);
    assert_eq!(left, (1_001 - kept..=1_000).collect::<Vec<u64>>());
}

#[test]
fn what_is_dropped_while_it_is_sent_is_not_taken_from_what_follows() {
    let folder = tempfile::tempdir().unwrap();
    let mut dropped = Dropped::default();
    let mut spool = opened(folder.path());
    spool.append(&frame(1, 10), &mut dropped).unwrap();
    let (parcel, place) = spool.read(10, 1 << 20, &mut dropped).unwrap();
    assert!(spool.has(place));
    (2..=400).for_each(|number| spool.append(&frame(number, 4_000), &mut dropped).unwrap());
    assert!(!spool.has(place));
    let before = spool.records();
    spool.taken(place, &parcel.frame);
    assert_eq!(spool.records(), before);
}

#[test]
fn a_process_that_dies_anywhere_in_a_write_loses_no_frame_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut dropped = Dropped::default();
    let mut spool = opened(folder.path());
    let mut ends = Vec::new();
    for number in 1..=5 {
        spool.append(&frame(number, 40), &mut dropped).unwrap();
        ends.push(spool.bytes());
    }
    drop(spool);
    let (_, path) = segments(folder.path()).unwrap().remove(0);
    let whole = fs::read(&path).unwrap();
    for length in 0..=whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let mut spool = opened(folder.path());
        let expected = ends.iter().filter(|end| **end <= length as u64).count() as u64;
        assert_eq!(spool.records(), expected, "cut at {length}");
        spool.append(&frame(6, 40), &mut dropped).unwrap();
        let numbers: Vec<u64> = (1..=expected).chain([6]).collect();
        assert_eq!(drained(&mut spool, &mut dropped), numbers, "cut at {length}");
        drop(spool);
        fs::read_dir(folder.path()).unwrap().for_each(|file| fs::remove_file(file.unwrap().path()).unwrap());
    }
    assert_eq!(dropped, Dropped::default());
}

#[test]
fn a_mark_that_means_nothing_costs_duplicates_and_no_record() {
    for mark in [&b""[..], &[7; 20], &[0; 20], &[0xff; 64]] {
        let folder = tempfile::tempdir().unwrap();
        let mut dropped = Dropped::default();
        let mut spool = opened(folder.path());
        (1..=3).for_each(|number| spool.append(&frame(number, 40), &mut dropped).unwrap());
        let (parcel, place) = spool.read(2, 1 << 20, &mut dropped).unwrap();
        spool.taken(place, &parcel.frame);
        drop(spool);
        fs::write(folder.path().join(MARK), mark).unwrap();
        let mut spool = opened(folder.path());
        assert_eq!(drained(&mut spool, &mut dropped), [1, 2, 3], "{mark:?}");
    }
}

#[test]
fn two_processes_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let _first = opened(folder.path());
    let error = Spool::open(folder.path(), MAX, Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "another process uses this folder");
}

#[test]
fn files_of_others_are_left_alone_and_files_that_are_none_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    fs::write(folder.path().join(name(3)), "no spool").unwrap();
    let mut dropped = Dropped::default();
    let mut spool = opened(folder.path());
    spool.append(&frame(1, 40), &mut dropped).unwrap();
    assert_eq!(drained(&mut spool, &mut dropped), [1]);
    assert!(folder.path().join("notes.txt").exists() && !folder.path().join(name(3)).exists());
}

#[test]
fn a_full_disk_refuses_frames_and_keeps_those_before_whole() {
    let disk = SmallDisk::of("256k");
    let mut dropped = Dropped::default();
    let mut spool = opened(disk.path());
    let mut kept = 0;
    let error = loop {
        match spool.append(&frame(kept + 1, 3_000), &mut dropped) {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(kept > 50, "{kept}");
    assert!(spool.append(&frame(0, 3_000), &mut dropped).is_err());
    // Room again, once some were taken.
    for _ in 0..40 {
        let (parcel, place) = spool.read(1, 1 << 20, &mut dropped).unwrap();
        spool.taken(place, &parcel.frame);
    }
    spool.append(&frame(kept + 1, 3_000), &mut dropped).unwrap();
    assert_eq!(drained(&mut spool, &mut dropped), (41..=kept + 1).collect::<Vec<u64>>());
    assert_eq!(dropped, Dropped::default());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is changed in a file: nothing that was not appended comes out, in order, and nothing stops it.
    #[test]
    fn a_damaged_file_gives_what_is_whole_of_it(at in 0_usize..2_000, value: u8, extra in 0_usize..40) {
        let folder = tempfile::tempdir().unwrap();
        let mut dropped = Dropped::default();
        let mut spool = opened(folder.path());
        (1..=20).for_each(|number| spool.append(&frame(number, 60), &mut dropped).unwrap());
        drop(spool);
        let (_, path) = segments(folder.path()).unwrap().remove(0);
        let mut bytes = fs::read(&path).unwrap();
        let at = at % bytes.len();
        bytes[at..].iter_mut().take(extra + 1).for_each(|byte| *byte = byte.wrapping_add(value));
        fs::write(&path, &bytes).unwrap();

        let mut spool = opened(folder.path());
        spool.append(&frame(21, 60), &mut dropped).unwrap();
        let mut numbers = Vec::new();
        while let Some((parcel, place)) = spool.read(1, 1 << 20, &mut dropped) {
            numbers.push(parcel.frame.first);
            spool.taken(place, &parcel.frame);
        }
        prop_assert_eq!(numbers.last(), Some(&21));
        prop_assert!(numbers.is_sorted() && numbers.iter().collect::<BTreeSet<_>>().len() == numbers.len());
        prop_assert!(value == 0 || numbers.len() < 22);
    }
}
