//! Programs that know of no proxy, end to end: from a real microVM to a server of this test.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use sandbox_core::net::event::{Decided, Event, Kind, Subscription};
use sandbox_core::net::resolve::FixedResolver;
use sandbox_core::{CaptureState, NetworkPolicy, Sandbox, SandboxBuilder};

use crate::place::{Place, promptly, root, sh};

/// What a program sees of connections, datagrams and lookups. Nothing may take long: what leads nowhere says so.
const PYTHON: &str = r#"
import socket, struct, sys, time, urllib.request
def at_once(act):
    start = time.monotonic()
    try: said = act()
    except OSError as error: said = type(error).__name__
    assert time.monotonic() - start < 4, 'it took long'
    return said
def connect(host, port):
    def act():
        with socket.create_connection((host, port), 20) as s:
            s.settimeout(20)
            s.sendall(b'GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n')
            said = b''
            while more := s.recv(4096): said += more
            return said.decode().split('\r\n')[-1]
    return at_once(act)
def datagram(host, port):
    def act():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(20); s.connect((host, port)); s.send(b'x')
            return s.recv(99)
    return at_once(act)
def ping(host):
    def act():
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
            s.settimeout(20)
            head = struct.pack('!BBHHH', 8, 0, 0, 7, 1)
            total = sum(struct.unpack('!4H', head))
            s.sendto(head[:2] + struct.pack('!H', ~total & 0xffff) + head[4:], (host, 0))
            while True:
                kind = s.recv(999)[20]
                if kind != 8: return 'unreachable' if kind == 3 else f'ICMP {kind}'
    return at_once(act)
def look_up(name, family=socket.AF_INET):
    try: return socket.getaddrinfo(name, 1, family, socket.SOCK_STREAM)[0][4][0]
    except socket.gaierror as error: return [n for n in dir(socket) if getattr(socket, n) == error.errno and n[:4] == 'EAI_'][0]
"#;

/// Evaluates expressions of Python inside, as root, and returns their values as text.
async fn python(sandbox: &Sandbox, expressions: &[&str]) -> Vec<String> {
    let prints = expressions.iter().map(|one| format!("print({one})\n"));
    let script = format!("{PYTHON}{}", prints.collect::<String>());
    let mut command = sandbox.command("python3");
    let output = promptly(command.args(["-c", &script]).user("root").output()).await;
    let output = output.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Begins a sandbox in which `app.test` is the host of this test.
fn sandbox(place: &Place, rules: &[String]) -> SandboxBuilder {
    let names =
        FixedResolver::new().with("app.test".parse().unwrap(), [Ipv4Addr::LOCALHOST.into()]);
    place
        .microvm()
        .resolver(Arc::new(names))
        .network(policy(rules))
}

fn policy(rules: &[String]) -> NetworkPolicy {
    let none = NetworkPolicy::deny();
    let add = |policy: NetworkPolicy, rule: &String| policy.allow(rule).unwrap();
    rules.iter().fold(none, add)
}

/// The rules that let `app.test` be reached on a port, here.
fn rules(port: u16) -> Vec<String> {
    vec![format!("app.test:{port}"), format!("127.0.0.1/32:{port}")]
}

/// The next event of a kind.
async fn next(events: &mut Subscription, kind: Kind) -> Event {
    promptly(async {
        loop {
            let event = events.next().await.unwrap();
            if event.kind == kind {
                return event;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn e79_programs_that_know_of_no_proxy_reach_what_is_allowed_and_nothing_else() {
    let place = Place::new();
    let port = serve();
    let sandbox = sandbox(&place, &rules(port)).create().await.unwrap();
    let machine = sandbox.describe().await.unwrap().machine.unwrap();
    assert_eq!(machine.capture, CaptureState::Works);
    let mut events = sandbox.network_events().unwrap();

    let curl = sh(
        &sandbox,
        &format!("curl -sS --noproxy '*' http://app.test:{port}/"),
    )
    .await;
    assert_eq!(curl, "from the host");
    let lookup = next(&mut events, Kind::Lookup).await;
    assert_eq!(lookup.host.as_deref(), Some("app.test"));
    assert_eq!(lookup.verdict, Some(Decided::Allow));
    let decision = next(&mut events, Kind::Decision).await;
    assert_eq!(decision.host.as_deref(), Some("app.test"), "judged by name");
    assert_eq!(decision.verdict, Some(Decided::Allow));
    assert_eq!(decision.address, Some((Ipv4Addr::LOCALHOST, port).into()));
    let end = next(&mut events, Kind::End).await;
    assert!(end.bytes_up > Some(0) && end.bytes_down > Some(0));

    let git = format!("git -c http.proxy= ls-remote http://app.test:{port}/repository");
    assert!(sh(&sandbox, &git).await.ends_with("refs/heads/main"));
    let opener = "urllib.request.build_opener(urllib.request.ProxyHandler({}))";
    let told = python(
        &sandbox,
        &[
            &format!("{opener}.open('http://app.test:{port}/').read().decode()"),
            &format!("connect('APP.test.', {port})"),
            "look_up('app.test').startswith('198.19.')",
            "look_up('app.test') == look_up('app.test')",
            "look_up('app.test', socket.AF_INET6)",
            "look_up('localhost')",
            "connect('app.test', 81)",
        ],
    )
    .await;
    let expected = [
        "from the host",
        "from the host",
        "True",
        "True",
        "EAI_NODATA",
        "127.0.0.1",
        "ConnectionRefusedError",
    ];
    assert_eq!(told, expected);
    assert!(
        sh(&sandbox, "getent hosts app.test")
            .await
            .starts_with("198.19.")
    );
    ports_follow_the_policy(&sandbox, port).await;
    sandbox.remove().await.unwrap();
}

/// The ports that are captured change with the policy, while the machine runs.
async fn ports_follow_the_policy(sandbox: &Sandbox, first: u16) {
    let second = serve();
    let ask = [
        format!("connect('app.test', {first})"),
        format!("connect('app.test', {second})"),
    ];
    let ask = ask.each_ref().map(String::as_str);
    assert_eq!(
        python(sandbox, &ask).await,
        ["from the host", "ConnectionRefusedError"]
    );
    sandbox.set_network(policy(&rules(second))).await.unwrap();
    // The guest hears of it in its own time.
    for _ in 0..50 {
        let now = python(sandbox, &ask).await;
        if now == ["ConnectionRefusedError", "from the host"] {
            return;
        }
        assert_ne!(now[0], "from the host", "judged by the new policy at once");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the ports stay as they were");
}

#[tokio::test(flavor = "multi_thread")]
async fn e50_e52_e83_what_is_not_allowed_leads_nowhere_at_once() {
    let place = Place::new();
    let sandbox = sandbox(&place, &["app.test".into()])
        .create()
        .await
        .unwrap();
    let mut events = sandbox.network_events().unwrap();
    // E83: all there is ends at the agent.
    assert_eq!(sh(&sandbox, "ls /sys/class/net").await, "egress0\nlo");
    let gateways = "tail -n +2 /proc/net/route | awk '$3 != \"00000000\" { print $1, $3 }'";
    assert_eq!(sh(&sandbox, gateways).await, "egress0 010012C6");
    assert_eq!(
        sh(&sandbox, "grep -v ' lo$' /proc/net/if_inet6 || true").await,
        ""
    );

    // E50: a denied name is no name, and the host has not looked it up (its resolver would not know it either,
    // but says so by another event).
    let curl = "curl -sS --noproxy '*' http://secrets.evil.test/ || echo code $?";
    assert!(sh(&sandbox, curl).await.ends_with("code 6"), "no such name");
    let event = next(&mut events, Kind::Lookup).await;
    assert_eq!(event.host.as_deref(), Some("secrets.evil.test"));
    assert_eq!(event.verdict, Some(Decided::Deny));
    assert_eq!(event.reason.as_deref(), Some("not-allowed"));

    // What was not looked up is judged as an address; on port 80 the refusal has words.
    let curl = "curl -sS --noproxy '*' http://192.0.2.1/; curl -sS --noproxy '*' http://app.test/";
    let words = sh(&sandbox, curl).await;
    let reasons: Vec<_> = words.lines().map(reason).collect();
    assert_eq!(reasons, ["not-allowed", "address-refused"]);
    let event = next(&mut events, Kind::Decision).await;
    assert_eq!(event.host.as_deref(), Some("192.0.2.1"));

    let told = python(
        &sandbox,
        &[
            "look_up('secrets.evil.test')",
            "look_up('secrets.evil.test', socket.AF_INET6)",
            "connect('8.8.8.8', 443)",
            "connect('app.test', 443)",
            "connect('8.8.8.8', 25)",
            "connect('198.19.77.7', 443)",
            "connect('2001:4860:4860::8888', 443)",
            "datagram('8.8.8.8', 53)",
            "datagram('1.1.1.1', 443)",
            "ping('8.8.8.8')",
            "ping('198.18.0.1')",
        ],
    )
    .await;
    let expected = [
        "EAI_NONAME",
        "EAI_NONAME",
        "ConnectionResetError",
        "ConnectionResetError",
        "ConnectionRefusedError",
        "ConnectionResetError",
        "OSError",
        "ConnectionRefusedError",
        "ConnectionRefusedError",
        "unreachable",
        "unreachable",
    ];
    assert_eq!(told, expected);
    programs_have_their_own_ports(&sandbox).await;
    sandbox.remove().await.unwrap();
}

/// What the agent listens on is not taken from the programs inside.
async fn programs_have_their_own_ports(sandbox: &Sandbox) {
    let script = "
        for port in 80 443 53; do
            python3 -c \"
import socket
s = socket.create_server(('0.0.0.0', $port)); print('listens', flush=True)
c = socket.create_connection(('127.0.0.1', $port)); c.sendall(b'mine'); print(s.accept()[0].recv(9).decode())\"
        done";
    let told = root(sandbox, script).await;
    assert_eq!(told.matches("mine").count(), 3, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_cannot_be_written_has_a_resolver_too() {
    let place = Place::new();
    let sandbox = sandbox(&place, &["app.test".into()]).read_only_root();
    let sandbox = sandbox.create().await.unwrap();
    assert!(
        sh(&sandbox, "getent hosts app.test")
            .await
            .starts_with("198.19.")
    );
    let touched = root(
        &sandbox,
        "touch /etc/x 2>/dev/null && echo written || echo refused",
    )
    .await;
    assert_eq!(touched, "refused");
    sandbox.remove().await.unwrap();
}

fn reason(answer: &str) -> String {
    let answer: serde_json::Value = serde_json::from_str(answer).unwrap();
    answer["reason"].as_str().unwrap().to_owned()
}

/// Serves one sentence, and the little that git asks for, to whoever asks; returns the port.
fn serve() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..count]);
            let path = request.split(' ').nth(1).unwrap_or_default();
            let body = match path.split('?').next() {
                Some("/repository/info/refs") => format!("{}\trefs/heads/main\n", "1".repeat(40)),
                Some("/repository/HEAD") => "ref: refs/heads/main\n".to_owned(),
                _ => "from the host".to_owned(),
            };
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length";
            drop(write!(stream, "{head}: {}\r\n\r\n{body}", body.len()));
        }
    });
    port
}
