//! Edits of manifests reach the store; broken ones do not, and are told.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a failed test")]

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use flow::{Endpoint, Generation};
use policy_cache::{ManifestSource, Options, SnapshotStore, WatchHandle};

/// Far beyond the debounce, short of the poll: a notification must have done it.
const SOON: Duration = Duration::from_secs(4);

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nstatus: {{phase: Running, podIP: 10.0.0.1}}\n"
    )
}

#[track_caller]
fn eventually(within: Duration, what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + within;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The pod at 10.0.0.1.
fn holder(store: &SnapshotStore) -> Option<String> {
    let endpoint = store.current()?.endpoint("10.0.0.1".parse().unwrap());
    endpoint.pod().map(|pod| pod.name.to_string())
}

#[track_caller]
fn becomes(store: &SnapshotStore, name: &str) {
    eventually(SOON, name, || holder(store).as_deref() == Some(name));
}

fn watch(path: &Path) -> (WatchHandle, SnapshotStore) {
    let (source, store) = ManifestSource::open(&[path.to_owned()], Options::default()).unwrap();
    assert_eq!(store.current().map(|snapshot| snapshot.generation()), Some(Generation(1)));
    (source.watch(), store)
}

#[test]
fn an_edit_in_place_a_replaced_file_a_new_and_a_removed_one_are_seen() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pod.yaml");
    fs::write(&file, pod("one")).unwrap();
    let (_watch, store) = watch(folder.path());
    assert_eq!(holder(&store).as_deref(), Some("one"));

    fs::write(&file, pod("two")).unwrap();
    becomes(&store, "two");

    let draft = folder.path().join("pod.yaml~");
    fs::write(&draft, pod("three")).unwrap();
    fs::rename(&draft, &file).unwrap();
    becomes(&store, "three");

    fs::create_dir(folder.path().join("sub")).unwrap();
    fs::write(folder.path().join("sub/pod.yaml"), pod("four")).unwrap();
    fs::remove_file(&file).unwrap();
    becomes(&store, "four");

    fs::write(folder.path().join("sub/pod.yaml"), pod("five")).unwrap();
    becomes(&store, "five");
}

#[test]
fn a_file_that_is_named_itself_is_followed_when_it_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pod.yaml");
    fs::write(&file, pod("one")).unwrap();
    let (_watch, store) = watch(&file);
    for name in ["two", "three"] {
        let draft = folder.path().join("draft");
        fs::write(&draft, pod(name)).unwrap();
        fs::rename(&draft, &file).unwrap();
        becomes(&store, name);
    }
}

#[test]
fn a_mounted_config_map_is_followed_when_its_links_are_swapped() {
    for whole_folder in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let version = |number: u32, name: &str| {
            let data = root.join(format!("..version_{number}"));
            fs::create_dir(&data).unwrap();
            fs::write(data.join("pod.yaml"), pod(name)).unwrap();
            symlink(format!("..version_{number}"), root.join("..data_tmp")).unwrap();
            fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        };
        version(1, "one");
        symlink("..data/pod.yaml", root.join("pod.yaml")).unwrap();
        let (_watch, store) = watch(&if whole_folder { root.to_owned() } else { root.join("pod.yaml") });
        version(2, "two");
        fs::remove_dir_all(root.join("..version_1")).unwrap();
        becomes(&store, "two");
        version(3, "three");
        becomes(&store, "three");
    }
}

#[test]
fn a_broken_edit_keeps_the_last_good_state_and_is_told_until_it_is_mended() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pod.yaml");
    fs::write(&file, pod("one")).unwrap();
    let (watch, store) = watch(folder.path());
    assert_eq!(watch.status().failing_since, None);

    fs::write(&file, pod("two").replace("10.0.0.1", "nonsense")).unwrap();
    eventually(SOON, "the failure", || watch.status().failing_since.is_some());
    let status = watch.status();
    assert!(status.problems.iter().any(|problem| problem.field == "status.podIP"), "{status:?}");
    assert_eq!(holder(&store).as_deref(), Some("one"));
    assert_eq!(store.current().map(|snapshot| snapshot.generation()), Some(Generation(1)));

    fs::write(&file, pod("three")).unwrap();
    becomes(&store, "three");
    eventually(SOON, "the success", || watch.status().failing_since.is_none());
    assert!(watch.status().problems.is_empty() && watch.status().last_success > status.last_success);
}

#[test]
fn a_fifo_in_a_files_place_is_told_and_the_last_good_state_stays() {
    for whole_folder in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pod.yaml");
        fs::write(&file, pod("one")).unwrap();
        let (watch, store) = watch(if whole_folder { folder.path() } else { &file });
        let fifo = folder.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        fs::rename(&fifo, &file).unwrap();
        eventually(SOON, "the failure", || watch.status().failing_since.is_some());
        let status = watch.status();
        let expected = format!("{}: must be a regular file, is a FIFO", file.display());
        assert_eq!(status.problems.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
        assert!(status.alive);
        assert_eq!(holder(&store).as_deref(), Some("one"));

        let draft = folder.path().join("draft");
        fs::write(&draft, pod("two")).unwrap();
        fs::rename(&draft, &file).unwrap();
        becomes(&store, "two");
    }
}

#[test]
fn the_last_success_stands_still_while_the_manifests_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pod.yaml");
    fs::write(&file, pod("one")).unwrap();
    let before_reading = SystemTime::now();
    let (source, _store) = ManifestSource::open(&[folder.path().to_owned()], Options::default()).unwrap();
    let after_reading = SystemTime::now();
    fs::write(&file, "kind: [").unwrap();
    let watch = source.watch();
    let problem = |field: &str| watch.status().problems.iter().any(|problem| problem.field == field);
    eventually(SOON, "the failure", || watch.status().failing_since.is_some());
    let status = watch.status();
    // The first reading was the only good one: watching is no success.
    assert!((before_reading..=after_reading).contains(&status.last_success), "{status:?}");
    fs::write(&file, pod("two").replace("10.0.0.1", "nonsense")).unwrap();
    eventually(SOON, "the next failure", || problem("status.podIP"));
    assert_eq!(watch.status().last_success, status.last_success);
}

#[test]
fn only_a_change_of_the_objects_is_published() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pod.yaml");
    fs::write(&file, pod("one")).unwrap();
    let (watch, store) = watch(folder.path());
    let generations = store.subscribe();
    let before = watch.status().last_success;
    fs::write(&file, format!("# a comment\n{}", pod("one"))).unwrap();
    eventually(SOON, "the reading", || watch.status().last_success > before);
    assert_eq!(*generations.borrow(), Generation(1));
    fs::write(&file, pod("two")).unwrap();
    becomes(&store, "two");
    // The store changes first and is told of second.
    eventually(SOON, "the notice", || *generations.borrow() == Generation(2));
}

#[test]
fn own_addresses_take_effect_when_they_are_set() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("pod.yaml"), pod("one")).unwrap();
    let options = Options { node: Some("n".to_owned()), ..Options::default() };
    let (source, store) = ManifestSource::open(&[folder.path().to_owned()], options).unwrap();
    let watch = source.watch();
    let own: IpAddr = "10.0.0.254".parse().unwrap();
    let is_own = || {
        let endpoint = store.current().map(|snapshot| snapshot.endpoint(own));
        matches!(endpoint, Some(Endpoint::Node { own: true, .. }))
    };
    assert!(!is_own());
    watch.set_own_addresses(vec![own]);
    eventually(SOON, "the own address", is_own);
    watch.set_own_addresses(Vec::new());
    eventually(SOON, "no own address", || !is_own());
}

#[test]
fn manifests_that_are_broken_from_the_start_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("pod.yaml"), "kind: [").unwrap();
    assert!(ManifestSource::open(&[folder.path().to_owned()], Options::default()).is_err());
}

#[test]
fn dropping_the_handle_ends_the_watch_at_once() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("pod.yaml"), pod("one")).unwrap();
    let (watch, store) = watch(folder.path());
    let started = Instant::now();
    drop(watch);
    assert!(started.elapsed() < Duration::from_secs(2));
    fs::write(folder.path().join("pod.yaml"), pod("two")).unwrap();
    assert_eq!(holder(&store).as_deref(), Some("one"));
}

/// Isolates the pods that `selector` selects.
fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

/// Whether the pod at 10.0.0.1 takes a connection from outside.
fn is_open(store: &SnapshotStore) -> bool {
    may_connect(store, "192.0.2.1:40000", "10.0.0.1:80")
}

fn may_connect(store: &SnapshotStore, from: &str, to: &str) -> bool {
    let snapshot = store.current().unwrap();
    let tuple = flow::Tuple::tcp(from.parse().unwrap(), to.parse().unwrap());
    snapshot.decide(&snapshot.identify(&tuple)).verdict().is_allow()
}

#[test]
fn a_broken_policy_in_a_running_agent_closes_what_it_selects_and_nothing_else_is_held_up() {
    let folder = tempfile::tempdir().unwrap();
    let [pods, policies] = ["pods.yaml", "policies.yaml"].map(|name| folder.path().join(name));
    fs::write(&pods, pod("one")).unwrap();
    fs::write(&policies, policy("p", "{podSelector: {}, ingress: [{}]}")).unwrap();
    let (watch, store) = watch(folder.path());
    assert!(is_open(&store));

    fs::write(&policies, policy("p", "{podSelector: {}, ingress: [{ports: [{port: 99999}]}]}")).unwrap();
    eventually(SOON, "the broken rule allows nothing", || !is_open(&store));
    eventually(SOON, "it is told", || watch.status().problems.len() == 1);
    assert_eq!(watch.status().problems[0].object, "NetworkPolicy/default/p");
    fs::write(&pods, pod("two")).unwrap();
    becomes(&store, "two");
    assert!(!is_open(&store));

    // Twice the same name: which one is meant cannot be told.
    let good = policy("p", "{podSelector: {}, ingress: [{}]}");
    fs::write(&policies, format!("{good}---\n{good}")).unwrap();
    eventually(SOON, "the second one is told", || {
        watch.status().problems.iter().any(|problem| problem.message.contains("declared twice"))
    });
    assert!(!is_open(&store));
    fs::write(&policies, good).unwrap();
    eventually(SOON, "it is mended", || is_open(&store) && watch.status().problems.is_empty());
}

#[test]
fn while_a_file_cannot_be_parsed_nothing_is_taken_away_and_the_others_are_followed() {
    let folder = tempfile::tempdir().unwrap();
    let [pods, policies] = ["pods.yaml", "policies.yaml"].map(|name| folder.path().join(name));
    fs::write(&pods, pod("one")).unwrap();
    fs::write(&policies, policy("p", "{podSelector: {}}")).unwrap();
    let (watch, store) = watch(folder.path());
    assert!(!is_open(&store));
    fs::write(&policies, "kind: [").unwrap();
    eventually(SOON, "it is told", || watch.status().failing_since.is_some());
    fs::write(
        &pods,
        pod("one").replace("Running", "Pending").replace("name: one", "name: one, labels: {a: b}"),
    )
    .unwrap();
    let labelled = || {
        let snapshot = store.current().unwrap();
        snapshot.endpoint("10.0.0.1".parse().unwrap()).pod().is_some_and(|pod| !pod.labels.is_empty())
    };
    eventually(SOON, "the other file is followed", labelled);
    assert!(!is_open(&store), "the policy of the broken file is in force");
    fs::remove_file(&policies).unwrap();
    eventually(SOON, "a file that is gone takes its policy with it", || is_open(&store));
}

#[test]
fn a_file_that_is_being_written_takes_nothing_away() {
    let folder = tempfile::tempdir().unwrap();
    let policies = folder.path().join("policies.yaml");
    fs::write(folder.path().join("pods.yaml"), pod("one")).unwrap();
    fs::write(&policies, policy("p", "{podSelector: {}}")).unwrap();
    let (_watch, store) = watch(folder.path());
    let before = store.current().unwrap().generation();
    // Emptied, and for longer than changes are gathered; then written, with something new.
    fs::write(&policies, "").unwrap();
    let written = Instant::now() + Duration::from_millis(800);
    while Instant::now() < written {
        assert!(!is_open(&store), "the policy of the empty file is in force");
        std::thread::sleep(Duration::from_millis(5));
    }
    fs::write(
        &policies,
        policy("p", "{podSelector: {}}") + "---\n" + &pod("two").replace("10.0.0.1", "10.0.0.2"),
    )
    .unwrap();
    let followed = || store.current().unwrap().generation() > before;
    eventually(SOON, "what was written is followed", followed);
    assert!(!is_open(&store));
    // A file that stays empty has no objects.
    fs::write(&policies, "").unwrap();
    eventually(SOON, "its policy is gone", || is_open(&store));
}

/// Asserts all the while that it holds.
#[track_caller]
fn holds_for(time: Duration, what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        assert!(condition(), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_file_that_is_cut_between_documents_while_it_is_written_takes_nothing_away() {
    let folder = tempfile::tempdir().unwrap();
    let policies = folder.path().join("policies.yaml");
    fs::write(folder.path().join("pods.yaml"), pod("one")).unwrap();
    let first = policy("first", "{podSelector: {matchLabels: {app: other}}}");
    let whole = format!("{first}---\n{}", policy("second", "{podSelector: {}}"));
    fs::write(&policies, &whole).unwrap();
    let (_watch, store) = watch(folder.path());
    assert!(!is_open(&store));
    // Each part is written by a writer of its own, and in its pauses changes count as over.
    for _ in 0..3 {
        fs::write(&policies, &first).unwrap();
        holds_for(Duration::from_millis(300), "the policy behind the cut is in force", || !is_open(&store));
        fs::write(&policies, format!("{first}---\n")).unwrap();
        holds_for(Duration::from_millis(300), "the policy behind the cut is in force", || !is_open(&store));
    }
    fs::write(&policies, &whole).unwrap();
    holds_for(Duration::from_millis(1_000), "the policy that was written again is in force", || {
        !is_open(&store)
    });
    // One that is left out for good is gone, and so is one whose file is removed.
    fs::write(&policies, &first).unwrap();
    eventually(SOON, "the policy is gone", || is_open(&store));
    fs::write(&policies, &whole).unwrap();
    eventually(SOON, "the policy is back", || !is_open(&store));
    fs::remove_file(&policies).unwrap();
    eventually(SOON, "the policy is gone with its file", || is_open(&store));
}

#[test]
fn a_file_that_its_writer_has_not_closed_is_not_read() {
    use std::io::Write;
    let folder = tempfile::tempdir().unwrap();
    let policies = folder.path().join("policies.yaml");
    fs::write(folder.path().join("pods.yaml"), pod("one")).unwrap();
    fs::write(&policies, policy("p", "{podSelector: {}}")).unwrap();
    let (source, store) = ManifestSource::open(&[folder.path().to_owned()], Options::default()).unwrap();
    let opened = SystemTime::now();
    let watch = source.watch();
    // The thread's first look follows its watch: from then on the kernel tells of writers.
    eventually(SOON, "the first look", || watch.status().last_success > opened);
    // Cut here, the rule lets everybody in.
    let mut file = fs::File::create(&policies).unwrap();
    file.write_all(policy("p", "\n  podSelector: {}\n  ingress:\n  - from:\n").as_bytes()).unwrap();
    holds_for(Duration::from_millis(1_500), "half a rule lets nobody in", || !is_open(&store));
    file.write_all(b"    - ipBlock: {cidr: 192.0.2.7/32}\n").unwrap();
    drop(file);
    let told = || may_connect(&store, "192.0.2.7:40000", "10.0.0.1:80");
    eventually(SOON, "the whole rule is in force", told);
    assert!(!is_open(&store));
}

#[test]
fn files_that_are_never_quiet_keep_nothing_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let [policies, other] = ["policies.yaml", "other.yaml"].map(|name| folder.path().join(name));
    fs::write(folder.path().join("pods.yaml"), pod("one")).unwrap();
    fs::write(&policies, policy("p", "{podSelector: {}}")).unwrap();
    let (_watch, store) = watch(folder.path());
    fs::remove_file(&policies).unwrap();
    let (removed, mut number) = (Instant::now(), 0);
    while !is_open(&store) {
        assert!(removed.elapsed() < Duration::from_secs(10), "the policy of the removed file is gone");
        number += 1;
        fs::write(&other, format!("# {number}\n")).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_field_that_is_not_known_opens_nothing_in_a_running_agent() {
    let folder = tempfile::tempdir().unwrap();
    let policies = folder.path().join("policies.yaml");
    fs::write(folder.path().join("pods.yaml"), pod("one")).unwrap();
    let good = policy("p", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
    fs::write(&policies, &good).unwrap();
    let (watch, store) = watch(folder.path());
    let speaks = || may_connect(&store, "10.0.0.1:40000", "192.0.2.1:80");
    assert!(!is_open(&store) && !speaks());
    let edits = [
        // Whose it is cannot be told: it stays as it was.
        (good.replace("{name: p}", "{name: p, namespce: default}"), "metadata.namespce"),
        (good.replace("spec:", "namespace: shop\nspec:"), "namespace"),
        (good.replace("{name: p}", "{nmae: p}"), "metadata.nmae"),
        (good.replace("metadata:", "metdata:"), "metdata"),
        (good.replace("NetworkPolicy", "NetworkPolcy"), "kind"),
        (good.replace("networking.k8s.io/v1", "v1"), "kind"),
        // It isolates whatever it may have been meant to.
        (good.replace("spec:", "sepc:"), "sepc"),
        (good.replace("spec:", "  spec:").replace("{name: p}", "\n  name: p"), "metadata.spec"),
        (policy("p", "{podSelector: {}}\npolicyTypes: [Ingress, Egress]"), "policyTypes"),
        (
            policy("p", "{policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}\npodSelectr: {}"),
            "podSelectr",
        ),
        // A list of which nothing is read.
        (format!("apiVersion: v1\nkind: List\nitmes:\n- {{{}}}\n", "apiVersion: v1"), "itmes"),
    ];
    for (edit, field) in edits {
        fs::write(&policies, &edit).unwrap();
        eventually(SOON, field, || watch.status().problems.iter().any(|problem| problem.field == field));
        assert!(!is_open(&store) && !speaks(), "{edit}");
    }
    fs::write(&policies, policy("p", "{podSelector: {}, ingress: [{}]}")).unwrap();
    eventually(SOON, "it is mended", || is_open(&store) && speaks() && watch.status().problems.is_empty());
}

#[test]
fn more_broken_objects_than_problems_are_listed_all_stay_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pods.yaml");
    let pods = |address: &dyn Fn(usize) -> String| {
        let pod = |number: usize| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{number}}}\nstatus: {{phase: Running, podIP: {}}}\n",
                address(number)
            )
        };
        (0..1_200).map(pod).collect::<Vec<_>>().join("---\n")
    };
    let good = |number: usize| format!("10.1.{}.{}", number / 200, number % 200);
    fs::write(&file, pods(&good)).unwrap();
    let (watch, store) = watch(folder.path());
    fs::write(&file, pods(&|number| format!("{}.1", good(number)))).unwrap();
    eventually(SOON, "they are told", || !watch.status().problems.is_empty());
    let problems = watch.status().problems;
    assert_eq!((problems.len(), problems[1_000].message.as_str()), (1_001, "and 200 more problems"));
    assert_eq!(store.current().unwrap().generation(), Generation(1));
    let mended = |number: usize| if number == 1_199 { "10.2.0.1".to_owned() } else { good(number) };
    fs::write(&file, pods(&mended)).unwrap();
    let followed = || {
        let endpoint = store.current().unwrap().endpoint("10.2.0.1".parse().unwrap());
        endpoint.pod().is_some_and(|pod| &*pod.name == "pod-1199")
    };
    eventually(SOON, "they are mended", followed);
    assert!(watch.status().problems.is_empty());
}
