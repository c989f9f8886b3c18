//! Lines in → answers out, in the order of the lines, decided by several threads.
//!
//! One thread reads whatever there is to read and hands complete lines to the workers in turn; the caller's
//! thread takes the answers back in the same turn and writes them. Nothing waits for more input than a line's
//! end, so that a program that writes one probe and waits for its answer gets it. Every channel is bounded:
//! memory does not grow with the input, and a reader of the answers that is slow slows everything down.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};

use serde_json::Value;

use super::{Answer, ProbeError, Prober, plain};

/// The most that is read at once, a pipe's capacity (pipe(7)).
const READ_BYTES: usize = 64 << 10;
/// Answers are handed on when there are so many of them.
const PIECE_BYTES: usize = 256 << 10;
/// No probe is longer.
const MAX_LINE_BYTES: usize = 1 << 20;
/// What may lie ready before and behind each worker.
const READY: usize = 2;

/// What a worker is given.
enum Task {
    /// Lines, the last of which may lack its end, and the number of the first.
    Lines(Vec<u8>, u64),
    /// A line that was too long to be kept, by its number.
    TooLong(u64),
}

/// How many probes there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All.
    pub probes: u64,
    /// Those that could not be decided.
    pub failed: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.probes += other.probes;
        self.failed += other.failed;
    }
}

/// Answers of one task.
struct Piece {
    text: Vec<u8>,
    tally: Tally,
    /// No more of this task.
    is_last: bool,
}

impl Piece {
    /// Answers lines, none of them blank, each with its number, and calls `full` whenever there is enough to be
    /// handed on.
    fn answer(
        &mut self,
        prober: &Prober,
        (numbers, lines): &(Vec<u64>, Vec<Cow<'_, str>>),
        mut full: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        for ((number, line), plain) in numbers.iter().zip(lines).zip(plain::decide(prober, lines)) {
            let decided = prober.write(line, Some(*number), plain, &mut self.text);
            self.tally += Tally { probes: 1, failed: u64::from(!decided) };
            self.text.push(b'\n');
            if self.text.len() >= PIECE_BYTES && !full(self) {
                return false;
            }
        }
        true
    }

    fn refuse(&mut self, error: &ProbeError, number: u64) {
        let answer = Answer::Failed { id: Value::Null, line: Some(number), error: error.to_string() };
        // Writing to memory cannot fail.
        let _ = serde_json::to_writer(&mut self.text, &answer);
        self.text.push(b'\n');
        self.tally += Tally { probes: 1, failed: 1 };
    }
}

/// A worker as the writer knows it.
struct Worker {
    pieces: Receiver<Piece>,
    spare: Sender<Vec<u8>>,
    thread: JoinHandle<()>,
}

/// Answers every line of `input` that is not blank with a line of `output`, in order; `threads` decide. Says how
/// many there were. A line of more than a mebibyte cannot be decided.
///
/// # Errors
///
/// Of reading or writing. When the output fails, the thread that reads the input is left behind until its read
/// returns.
pub fn answer_stream(
    prober: &Arc<Prober>,
    input: impl Read + Send + 'static,
    mut output: impl Write,
    threads: NonZeroUsize,
) -> io::Result<Tally> {
    let (used, unused) = channel();
    let (mut tasks, mut workers) = (Vec::new(), Vec::new());
    for _ in 0..threads.get() {
        let (task, own_tasks) = sync_channel(READY);
        let (piece, pieces) = sync_channel(READY);
        let (spare, spares) = channel();
        let (prober, used) = (Arc::clone(prober), used.clone());
        let thread = thread::spawn(move || work(&prober, &own_tasks, &used, &piece, &spares));
        tasks.push(task);
        workers.push(Worker { pieces, spare, thread });
    }
    drop(used);
    let reader = thread::spawn(move || read(input, &tasks, &unused));
    let mut tally = Tally::default();
    // The first worker in turn that has ended was given no task in this round, and none was given out after it.
    for worker in (0..workers.len()).cycle() {
        let Some(task) = write_task(&workers[worker], &mut output)? else { break };
        tally += task;
    }
    for Worker { thread, .. } in workers {
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
    reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    Ok(tally)
}

/// Writes the answers to one task of a worker; `None` when it has no more.
fn write_task(worker: &Worker, output: &mut impl Write) -> io::Result<Option<Tally>> {
    let mut tally = Tally::default();
    while let Ok(mut piece) = worker.pieces.recv() {
        output.write_all(&piece.text)?;
        output.flush()?;
        tally += piece.tally;
        if piece.is_last {
            piece.text.clear();
            // A worker that has ended needs none.
            let _ = worker.spare.send(piece.text);
            return Ok(Some(tally));
        }
    }
    Ok(None)
}

/// Hands out what there is to read, cut behind the last line that is whole.
fn read(mut input: impl Read, tasks: &[SyncSender<Task>], unused: &Receiver<Vec<u8>>) -> io::Result<()> {
    let mut turns = tasks.iter().cycle();
    // False when nobody takes tasks any more.
    let mut hand_out = |task| turns.next().is_some_and(|worker| worker.send(task).is_ok());
    let mut lines = Vec::new();
    let mut in_long_line = false;
    // The number of the first of them.
    let mut number = 1;
    loop {
        let start = lines.len();
        lines.resize(start + READ_BYTES, 0);
        let count = match input.read(&mut lines[start..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
            Ok(0) => {
                lines.truncate(start);
                break;
            }
            Ok(count) => count,
        };
        lines.truncate(start + count);
        if in_long_line {
            let end = lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |end| end + 1);
            in_long_line = end == 0 || lines[end - 1] != b'\n';
            number += u64::from(!in_long_line);
            lines.drain(..end);
        }
        if let Some(end) = lines.iter().rposition(|byte| *byte == b'\n') {
            let mut next = unused.try_recv().unwrap_or_default();
            next.clear();
            next.extend_from_slice(&lines[end + 1..]);
            lines.truncate(end + 1);
            let first = number;
            number += lines.iter().filter(|byte| **byte == b'\n').count() as u64;
            if !hand_out(Task::Lines(std::mem::replace(&mut lines, next), first)) {
                return Ok(());
            }
        } else if lines.len() > MAX_LINE_BYTES {
            lines.clear();
            in_long_line = true;
            if !hand_out(Task::TooLong(number)) {
                return Ok(());
            }
        }
    }
    if !lines.is_empty() {
        hand_out(Task::Lines(lines, number));
    }
    Ok(())
}

/// A line as text, without what is blank around it.
fn trimmed(line: &[u8]) -> Cow<'_, str> {
    match String::from_utf8_lossy(line) {
        Cow::Borrowed(text) => Cow::Borrowed(text.trim()),
        Cow::Owned(text) => Cow::Owned(text.trim().to_owned()),
    }
}

/// Answers tasks until there are no more, or nobody wants the answers.
fn work(
    prober: &Prober,
    tasks: &Receiver<Task>,
    used: &Sender<Vec<u8>>,
    pieces: &SyncSender<Piece>,
    spares: &Receiver<Vec<u8>>,
) {
    while let Ok(task) = tasks.recv() {
        let text = spares.try_recv().unwrap_or_default();
        let mut piece = Piece { text, tally: Tally::default(), is_last: false };
        match task {
            Task::Lines(lines, first) => {
                let lines_of = (first..).zip(lines.split(|byte| *byte == b'\n').map(trimmed));
                let mut rest = lines_of.filter(|(_, line)| !line.is_empty()).peekable();
                while rest.peek().is_some() {
                    let handful: (Vec<u64>, Vec<Cow<'_, str>>) = rest.by_ref().take(plain::HANDFUL).unzip();
                    let hand_on = |piece: &mut Piece| {
                        let rest = Piece { text: Vec::new(), tally: Tally::default(), is_last: false };
                        pieces.send(std::mem::replace(piece, rest)).is_ok()
                    };
                    if !piece.answer(prober, &handful, hand_on) {
                        return;
                    }
                }
                // The thread that reads may have ended.
                let _ = used.send(lines);
            }
            Task::TooLong(number) => piece.refuse(&ProbeError::TooLong { limit: MAX_LINE_BYTES }, number),
        }
        piece.is_last = true;
        if pieces.send(piece).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::path::Path;

    use flow::Generation;

    use super::*;
    use crate::{Options, compile, parse};

    const PODS: &str = "{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {podIP: 10.0.0.1}}\n---\n\
                        {apiVersion: v1, kind: Pod, metadata: {name: b}, status: {podIP: 10.0.0.2}}";
    const GOOD: &str = r#"{"id":"good","src":{"pod":"default/a"},"dst":{"pod":"default/b"},"port":80}"#;

    fn prober() -> Arc<Prober> {
        let objects = parse([(Path::new("pods.yaml"), PODS)]).unwrap();
        let snapshot = compile(&objects, &Options::default(), Generation(1));
        Arc::new(Prober::new(&objects, Arc::new(snapshot)))
    }

    fn threads(number: usize) -> NonZeroUsize {
        NonZeroUsize::new(number).unwrap()
    }

    fn answers_from(input: impl Read + Send + 'static, number: usize) -> (bool, Vec<Value>) {
        let mut output = Vec::new();
        let tally = answer_stream(&prober(), input, &mut output, threads(number)).unwrap();
        let lines = String::from_utf8(output).unwrap();
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let failed = lines.iter().filter(|line| !line["error"].is_null()).count() as u64;
        assert_eq!(tally, Tally { probes: lines.len() as u64, failed });
        (failed == 0, lines)
    }

    fn answers(input: &[u8]) -> (bool, Vec<Value>) {
        answers_from(Cursor::new(input.to_vec()), 2)
    }

    /// Gives its bytes in pieces of a few bytes.
    struct Trickle(Cursor<Vec<u8>>, usize);

    impl Read for Trickle {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = self.1 % 97 + 1;
            let most = self.1.min(buffer.len());
            self.0.read(&mut buffer[..most])
        }
    }

    #[test]
    fn each_probe_gets_one_line_and_a_bad_one_does_not_stop_the_rest() {
        let (all_decided, lines) = answers(format!("{GOOD}\n\nnonsense\n  \r\n{GOOD}").as_bytes());
        assert!(!all_decided);
        assert_eq!(lines.len(), 3);
        assert_eq!((&lines[0]["id"], &lines[0]["verdict"]), (&"good".into(), &"allow".into()));
        assert_eq!(lines[1]["error"], "not a JSON object: expected ident at column 2");
        assert!(lines[1]["id"].is_null() && lines[1]["line"] == 3);
        assert_eq!(lines[2], lines[0]);
    }

    #[test]
    fn what_cannot_be_decided_names_its_line_however_many_threads_and_pieces() {
        let long = "x".repeat(2 * MAX_LINE_BYTES);
        let mut input = String::new();
        for line in 1..=9_000_u64 {
            input += match line {
                4_000 => &long,
                _ if line % 7 == 0 => "{}",
                _ if line % 3 == 0 => "",
                _ => GOOD,
            };
            input.push('\n');
        }
        let expected: Vec<u64> = (1..=9_000).filter(|line| line % 7 == 0 || *line == 4_000).collect();
        for number in [1, 3] {
            let at_once = Cursor::new(input.clone().into_bytes());
            // Every piece of a long line is looked through again: in small ones that takes its time.
            let trickling = Trickle(Cursor::new(input.replace(&long, "{}").into_bytes()), 0);
            for lines in [answers_from(at_once, number).1, answers_from(trickling, number).1] {
                let found: Vec<u64> = lines.iter().filter_map(|line| line["line"].as_u64()).collect();
                assert!(found == expected, "{number} threads");
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_a_bad_probe() {
        let (all_decided, lines) = answers(&[b"\xff\xfe\n", GOOD.as_bytes(), b"\n"].concat());
        assert!(!all_decided);
        assert!(lines[0]["error"].is_string());
        assert_eq!(lines[1]["verdict"], "allow");
    }

    #[test]
    fn all_probes_decided_is_success() {
        assert!(answers(GOOD.as_bytes()).0);
        assert!(answers(b"").0);
    }

    #[test]
    fn answers_come_in_the_order_of_the_probes_however_many_threads_and_pieces() {
        let probe = |number| format!("{{\"id\":{number},{}\n", &GOOD[r#"{"id":"good","#.len()..]);
        let input: String = (0..20_000).map(probe).collect();
        let input = || Cursor::new(input.clone().into_bytes());
        for number in [1, 2, 3, 7] {
            for (way, lines) in [
                ("at once", answers_from(input(), number).1),
                ("trickling", answers_from(Trickle(input(), 0), number).1),
            ] {
                assert_eq!(lines.len(), 20_000, "{way}, {number} threads");
                assert!((0..).zip(&lines).all(|(id, line)| line["id"] == id), "{way}, {number} threads");
            }
        }
    }

    #[test]
    fn a_line_without_end_is_refused_in_bounded_memory_and_the_next_is_answered() {
        let long = vec![b'x'; 5 * MAX_LINE_BYTES];
        let ends: [&[u8]; 2] = [b"\n", b""];
        for end in ends {
            let good = format!("{GOOD}\n");
            let (all_decided, lines) =
                answers(&[good.as_bytes(), &long, b"\n", good.as_bytes(), &long, end].concat());
            assert!(!all_decided);
            let failed: Vec<bool> = lines.iter().map(|line| line["error"].is_string()).collect();
            assert_eq!(failed, [false, true, false, true]);
            assert_eq!(lines[1]["error"], "longer than 1048576 bytes");
        }
    }

    #[test]
    fn a_failing_input_fails_after_what_came_before_it_is_answered() {
        struct Fails;
        impl Read for Fails {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("gone"))
            }
        }
        let mut output = Vec::new();
        let input = Cursor::new(format!("{GOOD}\n").into_bytes()).chain(Fails);
        let error = answer_stream(&prober(), input, &mut output, threads(2)).unwrap_err();
        assert_eq!(error.to_string(), "gone");
        assert_eq!(output.iter().filter(|byte| **byte == b'\n').count(), 1);
    }

    #[test]
    fn a_failing_output_ends_it_at_once_also_while_the_input_is_silent() {
        struct Silent(bool, Receiver<()>);
        impl Read for Silent {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if std::mem::replace(&mut self.0, true) {
                    // Until the test is over.
                    let _ = self.1.recv();
                    return Ok(0);
                }
                let text = format!("{GOOD}\n");
                buffer[..text.len()].copy_from_slice(text.as_bytes());
                Ok(text.len())
            }
        }
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (_over, silence) = channel();
        let error = answer_stream(&prober(), Silent(false, silence), Closed, threads(2)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
