//! Egress end to end: from a program in a real microVM, through the proxy, to a server of this test.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use sandbox_core::net::Way;
use sandbox_core::net::approval::{Answer, Approvals, Approver, Question};
use sandbox_core::net::policy::Pattern;
use sandbox_core::{ErrorKind, NetworkPolicy, PolicySource, Sandbox, UpstreamProxy};

use crate::place::{Place, files_with, promptly};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_let_through_but_what_a_rule_names() {
    let place = Place::new();
    let port = serve();
    let sandbox = place.microvm().create().await.unwrap();
    let mut events = sandbox.network_events().unwrap();

    let denied = get(&sandbox, port).await;
    assert!(denied.starts_with("403 {"), "{denied}");
    assert!(denied.contains("\"reason\""), "{denied}");
    let event = promptly(events.next()).await.unwrap();
    assert_eq!(event.port, Some(port));
    assert_eq!(event.verdict, Some(sandbox_core::net::event::Decided::Deny));

    let rule = format!("127.0.0.1/32:{port}");
    let policy = NetworkPolicy::deny().allow(&rule).unwrap();
    sandbox.set_network(policy).await.unwrap();
    assert_eq!(get(&sandbox, port).await, "200 from the host");
    assert_eq!(sandbox.network().await.unwrap().allowed().len(), 1);
    let other = get(&sandbox, port.wrapping_add(1)).await;
    assert!(other.starts_with("403"), "another port: {other}");

    sandbox.set_network(NetworkPolicy::deny()).await.unwrap();
    assert!(get(&sandbox, port).await.starts_with("403"));
    let direct = sandbox
        .command("curl")
        .args([
            "-sS",
            "--max-time",
            "10",
            "--noproxy",
            "*",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "http://192.0.2.1/",
        ])
        .output()
        .await
        .unwrap();
    let said = String::from_utf8(direct.stdout).unwrap();
    assert_eq!(said, "403", "there is no way around the policy");

    let log = std::fs::read_to_string(sandbox.network_log()).unwrap();
    let verdicts: Vec<String> = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|event| event["kind"] == "decision")
        .map(|event| event["verdict"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(verdicts[..2], ["deny", "allow"]);
    assert_eq!(verdicts.iter().filter(|one| *one == "allow").count(), 1);
    sandbox.remove().await.unwrap();
}

/// Asks for a page through the proxy and returns the status and the body.
async fn get(sandbox: &Sandbox, port: u16) -> String {
    let url = format!("http://127.0.0.1:{port}/");
    let mut command = sandbox.command("curl");
    // The guest's own addresses are spared the proxy, for good reason; this one is the host's.
    command.args(["-sS", "--noproxy", "", "-w", "\n%{http_code}", &url]);
    let output = command.output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    format!("{status} {}", body.trim())
}

/// Serves one sentence to whoever asks, and returns the port.
fn serve() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            drop(stream.read(&mut request));
            let body = "from the host";
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length";
            drop(write!(stream, "{head}: {}\r\n\r\n{body}", body.len()));
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn e34_a_detached_sandbox_goes_through_the_hosts_proxy_and_no_login_is_written_down() {
    let place = Place::new();
    let (address, heard) = company();
    let file = place.folder.path().join("proxy-url");
    std::fs::write(&file, format!("http://me:s3cret@{address}\n")).unwrap();
    let with_login = UpstreamProxy::at(&format!("http://me:s3cret@{address}")).unwrap();
    let builder = place.microvm().upstream_proxy(with_login).detached();
    let unwritable = builder.create().await.unwrap_err();
    assert_eq!(unwritable.kind(), ErrorKind::Unsupported, "{unwritable}");

    let sandbox = place
        .microvm()
        .network(NetworkPolicy::deny().allow("8.8.8.8").unwrap())
        .upstream_proxy(UpstreamProxy::from_file(&file))
        .detached()
        .create()
        .await
        .unwrap();
    let mut command = sandbox.command("curl");
    command.args(["-sS", "http://8.8.8.8/"]);
    let output = command.output().await.unwrap();
    assert_eq!(output.stdout, b"from the company's proxy", "{output:?}");
    let asked = heard.recv().unwrap();
    assert!(asked.starts_with("CONNECT 8.8.8.8:80 "), "{asked}");
    assert!(asked.contains("Basic bWU6czNjcmV0"), "{asked}");

    // The process that runs it is asked, which has the login; nobody else is.
    let checked = sandbox
        .check_network("http://8.8.8.8/", None)
        .await
        .unwrap();
    let proxy = format!("http://{address}");
    assert_eq!(checked.way, Some(Way::ByAddress { proxy }), "{checked:?}");
    let other = Some(NetworkPolicy::deny());
    let denied = sandbox.check_network("8.8.8.8:443", other).await.unwrap();
    assert!(!denied.allowed && denied.way.is_none(), "{denied:?}");
    assert!(heard.try_recv().is_err());

    let lines = place.processes();
    assert!(!lines.is_empty() && lines.iter().all(|(_, line)| !line.contains("s3cret")));
    std::fs::remove_file(&file).unwrap();
    assert_eq!(
        files_with(&place.dirs.state, &["s3cret", "bWU6czNjcmV0"]),
        ""
    );
    sandbox.remove().await.unwrap();
}

/// Says yes to one host, and notes what it was asked.
#[derive(Debug, Default)]
struct Person(Mutex<Vec<String>>);

#[async_trait::async_trait]
impl Approver for Person {
    async fn ask(&self, question: &Question) -> Answer {
        let target = question.target.to_string();
        self.0.lock().unwrap().push(target.clone());
        match target.starts_with("8.8.8.8:") {
            true => Answer::Session,
            false => Answer::Deny,
        }
    }

    fn keep(&self, _: &Pattern) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_rule_allows_is_put_to_whom_the_embedder_named() {
    let place = Place::new();
    let person = Arc::new(Person::default());
    let approvals = || Approvals::new(Arc::clone(&person) as _);
    let builder = place.microvm().approvals(approvals()).detached();
    let unwritable = builder.create().await.unwrap_err();
    assert_eq!(unwritable.kind(), ErrorKind::Unsupported, "{unwritable}");

    let (address, _heard) = company();
    let upstream = UpstreamProxy::at(&format!("http://{address}")).unwrap();
    let sandbox = place
        .microvm()
        .network(NetworkPolicy::deny().block("8.8.4.4").unwrap())
        .approvals(approvals())
        .upstream_proxy(upstream)
        .create()
        .await
        .unwrap();
    for (url, said) in [
        ("http://8.8.8.8/", "from the company's proxy"),
        ("http://8.8.8.8/", "from the company's proxy"),
        ("http://9.9.9.9/", "not-approved"),
        ("http://8.8.4.4/", "blocked"),
        ("http://10.0.0.1/", "not-allowed"),
    ] {
        let mut command = sandbox.command("curl");
        let output = command.args(["-sS", url]).output().await.unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(told.contains(said), "{url}: {told}");
    }
    // Once for the session; and not where a yes would change nothing.
    let asked = person.0.lock().unwrap().clone();
    assert_eq!(asked, ["8.8.8.8:80", "9.9.9.9:80"]);
    sandbox.remove().await.unwrap();
}

/// A proxy that opens any tunnel and answers for whoever is meant to be at its end.
fn company() -> (std::net::SocketAddr, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (heard, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap_or(0);
            drop(heard.send(String::from_utf8_lossy(&request[..count]).into_owned()));
            drop(write!(stream, "HTTP/1.1 200 OK\r\n\r\n"));
            drop(stream.read(&mut request));
            let body = "from the company's proxy";
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length";
            drop(write!(stream, "{head}: {}\r\n\r\n{body}", body.len()));
        }
    });
    (address, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn e48_what_an_organization_blocks_no_sandbox_allows() {
    let place = Place::new();
    let port = serve();
    let rule = format!("127.0.0.1/32:{port}");
    let file = place.folder.path().join("policy.toml");
    let blocked = format!("block = ['{rule}']\n");
    std::fs::write(&file, &blocked).unwrap();
    let sandbox = place
        .microvm()
        .network(NetworkPolicy::deny().allow(&rule).unwrap())
        .organization_policy(PolicySource::file(&file))
        .user_policy(NetworkPolicy::deny().allow("a.test:7777").unwrap())
        .create()
        .await
        .unwrap();
    let mut events = sandbox.network_events().unwrap();
    let denied = get(&sandbox, port).await;
    assert!(denied.starts_with("403 {"), "{denied}");
    let event = promptly(events.next()).await.unwrap();
    let whose = event.rule.unwrap();
    assert!(whose.starts_with("organization: block"), "{whose}");
    let more = NetworkPolicy::deny().allow(&rule).unwrap();
    sandbox.extend_network(more.clone()).await.unwrap();
    sandbox.set_network(more).await.unwrap();
    assert!(get(&sandbox, port).await.starts_with("403 {"));

    // What cannot be read changes nothing, and says where.
    std::fs::write(&file, "allow = []\nblock = [7]\n").unwrap();
    let error = sandbox.reload_network().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.operation().contains("policy.toml"), "{error}");
    assert!(error.detail().unwrap().contains("line 2"), "{error:?}");
    assert!(get(&sandbox, port).await.starts_with("403 {"));

    std::fs::remove_file(&file).unwrap();
    sandbox.reload_network().await.unwrap();
    assert_eq!(get(&sandbox, port).await, "200 from the host");
    std::fs::write(&file, &blocked).unwrap();
    let other = Sandbox::connect_in(place.dirs.clone(), sandbox.name()).await;
    let other = other.unwrap();
    other.reload_network().await.unwrap();
    assert!(get(&sandbox, port).await.starts_with("403 {"));
    let layers = other.network_layers().await.unwrap();
    assert_eq!(layers.iter().count(), 3);
    sandbox.remove().await.unwrap();
}
