//! The built programs in a [world](crate::world) of their own: `egress-proxy` and `sandbox` run in its middle, with
//! its name server; the clients are before the one and inside the other.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Ended, Place, Running, note_microvm, write};
use crate::world::files::{self, apt_get};
use crate::world::{NAME_SERVER, Node, OTHER, PROXY, PUBLIC, PUBLIC_SIX, Record, World, isolated};

const ZONE: &[(&str, &[Record])] = {
    use Record::{Address, Alias};
    &[
        ("www.allowed.test", &[Address(PUBLIC), Address(PUBLIC_SIX)]),
        ("six.allowed.test", &[Address(PUBLIC_SIX)]),
        ("inside.allowed.test", &[Alias("db.internal.test")]),
        ("db.internal.test", &[Address("10.0.0.7")]),
        ("metadata.allowed.test", &[Address("169.254.169.254")]),
        ("denied.test", &[Address(OTHER)]),
    ]
};

const NAME: &str = "networked";

/// The variables that tell OpenSSL, curl and git what to trust.
const TRUST: [&str; 3] = ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"];

/// What is said of an allowed host in the log, and of others: host, verdict, reason.
type Decided = (String, String, Option<String>);

fn decided(lines: &str) -> Vec<Decided> {
    let events = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |value: &Value| value.as_str().map(str::to_owned);
    events
        .filter(|event| event["kind"] == "decision")
        .map(|event| {
            let reason = text(&event["reason"]).filter(|_| event["verdict"] == "deny");
            (
                text(&event["host"]).unwrap(),
                text(&event["verdict"]).unwrap(),
                reason,
            )
        })
        .collect()
}

/// The events that a scenario of one allowed and two denied hosts leaves.
fn expected() -> [Decided; 3] {
    [
        ("denied.test", "deny", Some("not-allowed")),
        ("inside.allowed.test", "deny", Some("address-refused")),
        ("www.allowed.test", "allow", None),
    ]
    .map(|(host, verdict, reason)| {
        (
            host.to_owned(),
            verdict.to_owned(),
            reason.map(str::to_owned),
        )
    })
}

/// Runs the tool where the world is.
fn tool(place: &Place, node: &Node, arguments: &[&str]) -> Ended {
    let mut command = place.tool(arguments);
    node.within(|| Running::start(&mut command)).end()
}

/// The machine's project: a certificate to trust, and the scripts.
struct Machine<'a> {
    place: &'a Place,
    world: &'a World,
    /// Whether programs are told by this test what to trust; else the sandbox has told them.
    told: bool,
}

/// Whether programs know of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Forward,
    Transparent,
}

impl Machine<'_> {
    /// Runs a script inside, with the variables of its way, as an ordinary user or as root.
    fn sh(&self, (way, user): (Way, &str), script: &str) -> Ended {
        let root = self.place.project().join("root.crt").display().to_string();
        let mut line: Vec<String> = ["exec", "-u", user].map(str::to_owned).to_vec();
        for name in TRUST.into_iter().filter(|_| self.told) {
            line.extend(["-e".to_owned(), format!("{name}={root}")]);
        }
        let unset = match way {
            Way::Forward => "test -n \"$https_proxy\"",
            Way::Transparent => {
                "unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY"
            }
        };
        let script = format!("set -e; {unset}\n{script}");
        line.extend([NAME.to_owned(), "sh".into(), "-c".into(), script]);
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        tool(self.place, &self.world.proxy, &line)
    }

    /// What the programs of an image fetch.
    fn fetches(&self, way: Way) {
        let run = |script: &str| self.sh((way, "agent"), script).exited(0).stdout();
        let hello = "hello from www.allowed.test";
        self.world.names.asked();
        for url in ["http://www.allowed.test/", "https://www.allowed.test/"] {
            assert_eq!(run(&format!("curl -sS {url}")), hello);
            self.world.names.assert_asked_once(&["www.allowed.test"]);
        }
        let python = format!("python3 -c '{PYTHON}' https://www.allowed.test/");
        assert_eq!(run(&python).trim(), hello);
        self.world.names.assert_asked_once(&["www.allowed.test"]);
        let six = run("curl -sS https://six.allowed.test/");
        assert_eq!(six, "hello from six.allowed.test");
        let clone = "rm -rf /tmp/clone
            git clone -q https://www.allowed.test/git/project.git /tmp/clone
            tail -n 1 /tmp/clone/numbers";
        assert_eq!(run(clone), "20000\n");
        // apt-get is slow where the processor is emulated: one scheme each.
        let url = match way {
            Way::Forward => "https://www.allowed.test",
            Way::Transparent => "http://www.allowed.test",
        };
        let apt = |verb: &str| apt_get(Path::new(APT), url, verb);
        let install = format!(
            "mkdir -p {APT}/apt/state/lists/partial {APT}/apt/cache/archives/partial
             ({}); ({}); dpkg-deb -f {APT}/hello-net*.deb Package",
            apt("update"),
            apt("download hello-net")
        );
        assert!(run(&install).ends_with("hello-net\n"));
    }

    /// What they are told where they may not.
    fn is_refused(&self, way: Way) {
        let refused = |script: &str, word: &str| {
            let ended = self.sh((way, "agent"), script);
            assert_ne!(ended.0.status.code(), Some(0), "{ended:?}");
            let said = ended.stdout() + &ended.stderr();
            assert!(said.contains(word), "{script}: {said}");
        };
        // A name that is denied does not exist, without a proxy that could say more.
        let (denied, to_python, closed) = match way {
            Way::Forward => ("403", "403", "403"),
            Way::Transparent => ("resolve", "not known", "curl: ("),
        };
        self.world.names.asked();
        refused("curl -fsS http://denied.test/", denied);
        refused("curl -fsS https://secret.denied.test/", denied);
        refused(
            "git clone -q https://denied.test/git/project.git /tmp/no",
            denied,
        );
        refused(
            &format!("python3 -c '{PYTHON}' https://denied.test/"),
            to_python,
        );
        refused(
            &apt_get(Path::new(APT), "http://denied.test", "update"),
            denied,
        );
        self.world.names.assert_asked_once(&[]);
        refused("curl -fsS http://inside.allowed.test/", "403");
        refused("curl -fsS https://inside.allowed.test/", closed);
        refused("curl -fsS http://metadata.allowed.test/", "403");
        refused("curl -fsS http://169.254.169.254/latest/meta-data/", "403");
        refused(&format!("curl -fsS -g 'http://[{PUBLIC_SIX}]/'"), closed);
    }

    /// A network namespace inside, joined as a container engine joins it.
    fn container(&self) {
        let script = self
            .place
            .project()
            .join("container.py")
            .display()
            .to_string();
        let fetch =
            "for url in http://www.allowed.test/ https://www.allowed.test/ http://denied.test/ \
                https://denied.test/ http://inside.allowed.test/ http://10.0.0.7/
            do curl -fsS --max-time 20 $url 2>/dev/null; echo \" $?\"; done";
        let run = format!("python3 {script} sh -c '{fetch}'");
        let ended = self.sh((Way::Transparent, "root"), &run).exited(0);
        let hello = "hello from www.allowed.test 0\n";
        // No such host, twice, and an answer of 403, twice.
        assert_eq!(
            ended.stdout(),
            format!("{hello}{hello} 6\n 6\n 22\n 22\n"),
            "{ended:?}"
        );
    }
}

const PYTHON: &str =
    "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())";

/// Where apt-get has its system inside.
const APT: &str = "/tmp/apt";

/// Runs a program in a network namespace of its own, joined to the machine's by a pair of interfaces and forwarding,
/// by the kernel's own interface: the image has no `ip`.
const CONTAINER: &str = r#"
import ctypes, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def ask(kind, flags, body):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as s:
        s.send(struct.pack('=IHHII', 16 + len(body), kind, flags | 5, 1, 0) + body)
        error = -struct.unpack_from('=i', s.recv(4096), 16)[0]
        if error: raise OSError(error, os.strerror(error))
def attr(kind, value): return struct.pack('=HH', 4 + len(value), kind) + value + bytes(-len(value) % 4)
def link(index=0, up=0): return struct.pack('=BxHiII', 0, 0, index, up, up)
def own(index, address): ask(20, 0x600, struct.pack('=BBBBI', 2, 24, 0, 0, index) + attr(2, address) + attr(1, address))
def up(name):
    index = socket.if_nametoindex(name)
    ask(16, 0, link(index, 1))
    return index
inner, outer = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    if libc.unshare(0x40000000): os._exit(99)
    os.write(inner[1], b'x'); os.read(outer[0], 1)
    up('lo'); own(up('eth0'), bytes([172, 17, 0, 2]))
    ask(24, 0x600, struct.pack('=BBBBBBBBI', 2, 0, 0, 0, 254, 3, 0, 1, 0) + attr(5, bytes([172, 17, 0, 1])))
    os.execvp(sys.argv[1], sys.argv[1:])
os.read(inner[0], 1)
peer = link() + attr(3, b'eth0\0') + attr(19, struct.pack('=I', child))
ask(16, 0x600, link() + attr(3, b'bridge0\0') + attr(18, attr(1, b'veth') + attr(2, attr(1, peer))))
own(up('bridge0'), bytes([172, 17, 0, 1]))
open('/proc/sys/net/ipv4/ip_forward', 'w').write('1')
os.write(outer[1], b'x')
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"#;

/// The world of a folder with a repository and packages in it.
fn world(folder: &Path) -> World {
    files::repository(folder);
    files::packages(folder);
    World::new(ZONE, &folder.join("files"))
}

/// In a user namespace no image can be made, for want of users.
#[test]
fn e79_programs_in_a_microvm_reach_what_is_allowed_with_and_without_the_proxy() {
    Place::new().run(&["setup"]).exited(0);
    isolated(|| {
        let folder = tempfile::tempdir().unwrap();
        let world = world(folder.path());
        let place = Place::new();
        write(place.project().join("root.crt"), &world.site.root);
        write(place.project().join("container.py"), CONTAINER);
        let create = [
            "create",
            "--name",
            NAME,
            "--policy",
            "deny",
            "--allow-host",
            "*.allowed.test",
            "shell",
            ".",
        ];
        tool(&place, &world.proxy, &create).exited(0);
        note_microvm("e79_programs_in_a_microvm_reach_what_is_allowed_with_and_without_the_proxy");
        let machine = Machine {
            place: &place,
            world: &world,
            told: true,
        };
        for way in [Way::Forward, Way::Transparent] {
            machine.fetches(way);
            machine.is_refused(way);
        }
        machine.container();
        let log = tool(&place, &world.proxy, &["network", "log", "--json", NAME]).exited(0);
        let decided = decided(&log.stdout());
        for one in expected() {
            assert!(decided.contains(&one), "no {one:?} in {decided:#?}");
        }
        assert!(decided.iter().all(|(host, verdict, _)| {
            verdict == "deny" || ["www.allowed.test", "six.allowed.test"].contains(&host.as_str())
        }));
        world.assert_private_untouched();
        tool(&place, &world.proxy, &["rm", "-f", NAME]).exited(0);
        place.assert_clean();
    });
}

#[test]
#[ignore = "slow: a machine of its own, and programs that take a second each where the processor is emulated"]
fn e75_programs_in_a_microvm_trust_what_opens_their_tunnels() {
    Place::new().run(&["setup"]).exited(0);
    isolated(|| {
        let folder = tempfile::tempdir().unwrap();
        let world = world(folder.path());
        let place = Place::new();
        let root = folder.path().join("root.pem");
        write(&root, &world.site.root);
        let rules = folder.path().join("rules.toml");
        write(
            &rules,
            "allow = [{ host = \"*.allowed.test\", methods = [\"GET\", \"POST\"] }]\n",
        );
        let rules = rules.to_str().unwrap();
        let create = [
            "create",
            "--name",
            NAME,
            "--rules-file",
            rules,
            "shell",
            ".",
        ];
        let mut command = place.tool(&create);
        // Only the proxy trusts the site.
        command.env("SSL_CERT_FILE", &root);
        world
            .proxy
            .within(|| Running::start(&mut command))
            .end()
            .exited(0);
        note_microvm("e75_programs_in_a_microvm_trust_what_opens_their_tunnels");
        let machine = Machine {
            place: &place,
            world: &world,
            told: false,
        };
        for way in [Way::Forward, Way::Transparent] {
            machine.fetches(way);
            machine.is_refused(way);
            let delete =
                "curl -sS -o /dev/null -w '%{http_code}' -X DELETE https://www.allowed.test/";
            assert_eq!(machine.sh((way, "agent"), delete).exited(0).stdout(), "403");
        }
        world.assert_private_untouched();
        tool(&place, &world.proxy, &["rm", "-f", NAME]).exited(0);
        place.assert_clean();
    });
}

#[test]
fn e31_e50_the_proxy_program_asks_its_name_server_for_allowed_names_alone() {
    isolated(|| {
        let folder = tempfile::tempdir().unwrap();
        let world = world(folder.path());
        std::fs::write(folder.path().join("root.pem"), &world.site.root).unwrap();
        let mut proxy = std::process::Command::new(env!("CARGO_BIN_EXE_egress-proxy"));
        proxy.args([
            "--listen",
            PROXY,
            "--name-server",
            NAME_SERVER,
            "--allow-host",
            "*.allowed.test",
        ]);
        proxy
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let proxy = world.proxy.within(|| Running::start(&mut proxy));
        let root = folder.path().join("root.pem").display().to_string();
        let mut variables: Vec<_> = TRUST.map(|name| (name.to_owned(), root.clone())).to_vec();
        variables.extend(
            ["http_proxy", "https_proxy"].map(|name| (name.to_owned(), format!("http://{PROXY}"))),
        );
        let client = |line: &[&str]| world.clients.program(line, &variables);
        let retry = [
            "curl",
            "-fsS",
            "--retry-connrefused",
            "--retry",
            "20",
            "--retry-delay",
            "1",
        ];
        for url in ["http://www.allowed.test/", "https://www.allowed.test/"] {
            let ran = client(&[&retry[..], &[url]].concat());
            assert_eq!(ran.well(), "hello from www.allowed.test");
            world.names.assert_asked_once(&["www.allowed.test"]);
        }
        let to = folder.path().join("clone");
        let clone = [
            "git",
            "clone",
            "-q",
            "https://www.allowed.test/git/project.git",
            to.to_str().unwrap(),
        ];
        client(&clone).well();
        world.names.asked();
        client(&["curl", "-fsS", "https://denied.test/"]).refused("403");
        world.names.assert_asked_once(&[]);
        client(&["curl", "-fsS", "http://inside.allowed.test/"]).refused("403");
        world.names.assert_asked_once(&["inside.allowed.test"]);
        world.assert_private_untouched();
        proxy.signal(rustix::process::Signal::TERM);
        let ended = proxy.end().exited(0);
        let mut decided = decided(&ended.stdout());
        decided.sort();
        decided.dedup();
        assert_eq!(decided, expected());
    });
}
