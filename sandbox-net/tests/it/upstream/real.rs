//! A proxy that others wrote: Squid, from Debian. A program of the test makes it lead to one origin on loopback,
//! whatever it is asked for.

use std::{
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use sandbox_net::UpstreamProxy;
use tokio::net::TcpStream;

use super::{echo, support::behind};
use crate::support::{Origin, allowing, body, fetch, within};

/// Where Debian puts it.
const SQUID: &str = "/usr/sbin/squid";
/// Agrees to the login that is its argument, in the form in which Squid asks: spaces percent-encoded.
const LOGIN: &str = "#!/bin/sh\nwhile read -r user password; do\n\
    if [ \"$user:$password\" = \"$1\" ]; then echo OK; else echo ERR; fi\ndone\n";

/// A Squid of this test; dropped, it is ended.
struct Squid {
    address: SocketAddr,
    child: Child,
    folder: tempfile::TempDir,
}

impl Squid {
    /// Starts one that leads to an origin, for those who know the login, if there is one.
    async fn start(origin: &Origin, login: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        // Squid drops root's rights, and then has to write here.
        std::fs::set_permissions(here, std::fs::Permissions::from_mode(0o777)).unwrap();
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        std::fs::write(here.join("squid.conf"), configuration(here, address, login)).unwrap();
        for (name, text) in [("rewrite", &*rewriting(origin)), ("login", LOGIN)] {
            let path = here.join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let child = Command::new(SQUID)
            // The name of its shared memory, which would otherwise be that of every other Squid.
            .args(["-n", &format!("test{}", address.port()), "-N", "-f"])
            .arg(here.join("squid.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{SQUID} (Debian: squid): {error}"));
        let squid = Self {
            address,
            child,
            folder,
        };
        within(async {
            while TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        squid
    }

    fn at(&self, login: &str) -> UpstreamProxy {
        UpstreamProxy::at(&format!("http://{login}{}", self.address)).unwrap()
    }

    /// Waits for a line of its log.
    async fn logged(&self, text: &str) {
        let path = self.folder.path().join("access.log");
        within(async {
            while !std::fs::read_to_string(&path)
                .unwrap_or_default()
                .contains(text)
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
}

impl Drop for Squid {
    /// Killed, it would leave its shared memory behind.
    fn drop(&mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).ok();
        drop(self.child.wait());
    }
}

fn configuration(here: &Path, address: SocketAddr, login: Option<&str>) -> String {
    let here = here.display();
    let allow = match login {
        None => "http_access allow all".to_owned(),
        Some(login) => {
            format!(
                "auth_param basic program {here}/login {login}\n\
                 acl known proxy_auth REQUIRED\nhttp_access allow known\nhttp_access deny all"
            )
        }
    };
    format!(
        "http_port {address}\nvisible_hostname squid.test\n{allow}\n\
         url_rewrite_program {here}/rewrite\nurl_rewrite_children 1 startup=1\n\
         cache deny all\npid_filename none\ncoredump_dir {here}\n\
         logformat asked %>rm %>ru %[un.\naccess_log stdio:{here}/access.log asked\ncache_log {here}/cache.log\n\
         netdb_filename none\npinger_enable off\nshutdown_lifetime 0 seconds\n"
    )
}

/// Leads tunnels and requests to the origin, whatever they ask for.
fn rewriting(origin: &Origin) -> String {
    let to = origin.address;
    format!(
        "#!/bin/sh\nwhile read -r url rest; do case $url in\n\
         http://*) echo \"OK rewrite-url=http://{to}/rewritten\";;\n\
         *) echo \"OK rewrite-url={to}\";;\nesac; done\n"
    )
}

#[tokio::test]
async fn e34_squid_is_asked_for_the_judged_address_or_for_the_name() {
    let origin = Origin::echo().await;
    let squid = Squid::start(&origin, None).await;
    let rules = || allowing(&["*.example.com:7000"]);
    let proxy = behind(squid.at(""), rules());
    assert_eq!(echo(&proxy, "www.example.com:7000").await, "hello");
    squid.logged("CONNECT 8.8.8.8:7000").await;
    let proxy = behind(squid.at("").names(), rules());
    assert_eq!(echo(&proxy, "proxied.example.com:7000").await, "hello");
    squid.logged("CONNECT proxied.example.com:7000").await;
}

#[tokio::test]
async fn squid_forwards_plain_requests_and_asks_for_a_login() {
    let origin = Origin::mirror().await;
    let squid = Squid::start(&origin, Some("me:s@cret%20word")).await;
    let rules = || allowing(&["www.example.com"]);
    let known = squid.at("me:s%40cret%20word@").names();
    let answer = fetch(&behind(known.clone(), rules()), "http://www.example.com/a").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("GET /rewritten HTTP/1.1"), "{answer}");
    assert!(
        !answer.to_lowercase().contains("proxy-authorization"),
        "{answer}"
    );
    squid.logged("GET http://www.example.com/a me.").await;
    for stranger in [squid.at("").names(), squid.at("me:wrong@").names()] {
        let answer = fetch(&behind(stranger, rules()), "http://www.example.com/a").await;
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
        assert_eq!(body(&answer)["reason"], "upstream-proxy-login", "{answer}");
    }
    let stranger = behind(squid.at(""), allowing(&["www.example.com:7000"]));
    let answer = echo(&stranger, "www.example.com:7000").await;
    assert_eq!(body(&answer)["reason"], "upstream-proxy-login");
}
