//! `sluice status` where it cannot ask: exit code 2, and a message that says what to do.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a failed test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::thread;

fn status(admin: &str) -> (Option<i32>, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_sluice")).args(["status", "--admin", admin]).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Answers one connection so, and keeps it open when the answer is empty.
fn server(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(answer.as_bytes());
        if answer.is_empty() {
            // Until the client gives up.
            let _ = stream.read(&mut [0; 1]);
        }
    });
    address
}

#[test]
fn where_no_agent_can_be_asked_the_exit_code_is_2_and_the_message_says_what_to_do() {
    let nobody = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let answered = |text| server(text).to_string();
    let table = [
        (nobody.clone(), format!("`sluice run --admin {nobody}`")),
        ("localhost".to_owned(), "must be ADDR:PORT".to_owned()),
        ("127.0.0.1:0".to_owned(), "must be ADDR:PORT".to_owned()),
        ("host.invalid:9093".to_owned(), "no agent answers at host.invalid:9093".to_owned()),
        (answered("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), "HTTP 404".to_owned()),
        (answered("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), "another program".to_owned()),
        (answered("SSH-2.0-OpenSSH_9.2\r\n"), "does not answer as HTTP".to_owned()),
        (answered("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"), "does not answer as HTTP".to_owned()),
        (answered(""), "no answer within".to_owned()),
    ];
    for (admin, message) in table {
        let (code, stdout, stderr) = status(&admin);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{admin}: {stderr}");
        assert!(stderr.contains(&message), "{admin}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn an_agent_that_answers_decides_the_exit_code_by_its_readiness() {
    for (answer, code) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 27\r\n\r\n{\"node\":\"n7\",\"ready\":true } ", 0),
        ("HTTP/1.0 200 OK\r\n\r\n{\"node\":\"n7\",\"ready\":false}", 1),
    ] {
        let (found, stdout, stderr) = status(&server(answer).to_string());
        assert_eq!(found, Some(code), "{stderr}");
        assert!(stdout.starts_with("n7 "), "{stdout}");
    }
}
