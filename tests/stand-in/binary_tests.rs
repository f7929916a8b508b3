//! The binary prints its url, serves what its flags say, writes its ledger, and leaves with its standard input.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use base64::Engine;

struct Running {
    child: Child,
    url: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(flags: &[&str]) -> Running {
    let mut child = Command::new(env!("CARGO_BIN_EXE_dhis2-stand-in"))
        .args(flags)
        .arg("--until-stdin-closes")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
    Running { child, url: url.trim_end().to_owned() }
}

fn get(url: &str, path: &str, user: &str) -> String {
    let address = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let credentials = base64::engine::general_purpose::STANDARD.encode(user);
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Basic {credentials}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn flags_become_what_the_server_does() {
    let ledger = std::env::temp_dir().join(format!("stand-in-binary-{}", std::process::id()));
    let _ = std::fs::remove_file(&ledger);
    let running = start(&[
        "--version",
        "2.31",
        "--org-units",
        "77",
        "--size",
        "dataElements=12",
        "--user",
        "boss",
        "--password",
        "geheim",
        "--limited-user",
        "reader:a:b:50",
        "--system-id",
        "me",
        "--server-date",
        "2024-02-03",
        "--refuse",
        "users=403",
        "--fault",
        "nth=2,path=dataSets,status=503,retry-after=7",
        "--ledger",
        ledger.to_str().unwrap(),
    ]);
    let ask = |path: &str| get(&running.url, path, "boss:geheim");
    let info = ask("/api/system/info");
    for part in [r#""version":"2.31.1""#, r#""systemId":"me""#, r#""serverDate":"2024-02-03T00:00:00.000""#] {
        assert!(info.contains(part), "{info}");
    }
    assert!(ask("/api/organisationUnits").contains(r#""total":77"#));
    assert!(ask("/api/dataElements").contains(r#""total":12"#));
    assert!(ask("/api/users").starts_with("HTTP/1.1 403"));
    assert!(get(&running.url, "/api/me", "reader:a:b").starts_with("HTTP/1.1 200"), "a password may hold a colon");
    assert!(ask("/api/dataSets").starts_with("HTTP/1.1 200"));
    let busy = ask("/api/dataSets");
    assert!(busy.starts_with("HTTP/1.1 503") && busy.contains("Retry-After: 7\r\n"), "{busy}");
    let lines = std::fs::read_to_string(&ledger).unwrap();
    assert_eq!(lines.lines().filter(|line| line.contains(r#""event":"arrived""#)).count(), 7);
    assert!(!lines.contains("geheim"));
    std::fs::remove_file(&ledger).unwrap();
}

#[test]
fn it_leaves_when_its_standard_input_closes() {
    let mut running = start(&[]);
    assert!(running.url.starts_with("http://127.0.0.1:"), "{}", running.url);
    drop(running.child.stdin.take());
    assert!(running.child.wait().unwrap().success());
}

#[test]
fn flags_that_mean_nothing_are_told_with_the_reason() {
    for (flags, reason) in [
        (&["--fault", "every=3"][..], "does not say what goes wrong"),
        (&["--version", "2.24"], "no version from 2.25 to 2.43"),
        (&["--size", "nonsense=3"], "no collection `nonsense`"),
        (&["--refuse", "users"], "NAME=NUMBER"),
        (&["--server-date", "soon"], "no date"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_dhis2-stand-in")).args(flags).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(reason), "{flags:?}: {stderr}");
    }
}
