//! `egress-proxy`: no microVM, only loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// The bound on every wait.
const HANG: Duration = Duration::from_secs(20);

/// An origin that answers every connection's first request.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            if stream.read(&mut request).unwrap() > 0 {
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
                stream.write_all(answer).unwrap();
            }
        }
    });
    address
}

struct Proxy {
    child: Child,
    address: SocketAddr,
}

impl Proxy {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_egress-proxy"))
            .args(["--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert!(told.read_line(&mut line).unwrap() > 0, "it ended");
            if let Some((_, address)) = line.trim().rsplit_once("listening on ") {
                break address.parse().unwrap();
            }
        };
        Self { child, address }
    }

    fn ask(&self, url: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        write!(
            stream,
            "GET {url} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Tells it to stop; returns whether it ended well, and its events.
    fn stop(mut self) -> (bool, Vec<serde_json::Value>) {
        let id = Pid::from_child(&self.child);
        kill_process(id, Signal::TERM).unwrap();
        let mut text = String::new();
        let mut output = self.child.stdout.take().unwrap();
        output.read_to_string(&mut text).unwrap();
        let events = text.lines().map(|line| serde_json::from_str(line).unwrap());
        (self.child.wait().unwrap().success(), events.collect())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn what_it_decides_is_on_standard_output_and_it_ends_well() {
    let origin = origin();
    let rule = format!("127.0.0.1/32:{}", origin.port());
    let proxy = Proxy::start(&["--allow-host", &rule]);
    assert!(proxy.ask(&format!("http://{origin}/x")).ends_with("ok"));
    assert!(proxy.ask("http://a.test/").starts_with("HTTP/1.1 403"));
    // A connection that waits for a request does not keep it from ending.
    let _idle = TcpStream::connect(proxy.address).unwrap();
    let (well, events) = proxy.stop();
    assert!(well);
    let decisions: Vec<_> = events
        .iter()
        .filter(|event| event["kind"] == "decision")
        .map(|event| (&event["verdict"], &event["rule"], &event["path"]))
        .collect();
    assert_eq!(decisions.len(), 2, "{events:?}");
    let rule = serde_json::Value::from(format!("allow {origin}"));
    assert_eq!(decisions[0], (&"allow".into(), &rule, &"/x".into()));
    assert_eq!(decisions[1].0, "deny");
    assert!(events.iter().any(|event| event["kind"] == "end"));
}

#[test]
fn e47_rules_that_cannot_be_read_again_leave_those_in_force() {
    let origin = origin();
    let file = tempfile::NamedTempFile::new().unwrap();
    let rules = |text: String| std::fs::write(file.path(), text).unwrap();
    let allow = |host: &str| format!(r#"{{"mode": "deny", "allow": ["{host}"], "block": []}}"#);
    rules(allow(&format!("127.0.0.1/32:{}", origin.port())));
    let proxy = Proxy::start(&["--rules", file.path().to_str().unwrap()]);
    let url = format!("http://{origin}/");
    let hang_up = || kill_process(Pid::from_child(&proxy.child), Signal::HUP).unwrap();
    assert!(proxy.ask(&url).ends_with("ok"));
    rules("no rules".into());
    hang_up();
    std::thread::sleep(Duration::from_millis(200));
    assert!(proxy.ask(&url).ends_with("ok"));
    rules(allow("a.test"));
    hang_up();
    let begun = std::time::Instant::now();
    while !proxy.ask(&url).starts_with("HTTP/1.1 403") {
        assert!(begun.elapsed() < HANG);
    }
    assert!(proxy.stop().0);
}
