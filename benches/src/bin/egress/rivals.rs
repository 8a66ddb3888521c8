//! The proxies: how each is started, all of them as bare as they can be.

use std::{
    fmt, fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use sandbox_benches::Result;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::{client::Way, origin::Origin};

/// How long a proxy may take to listen. mitmproxy needs seconds.
const START: Duration = Duration::from_secs(30);

/// Who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rival {
    Direct,
    Splice,
    Ours,
    /// Ours, with its events written to a file.
    OursLogged,
    /// Ours, for connections that a guest captured.
    OursCaptured,
    OursInspecting,
    Squid,
    Mitmproxy,
    MitmproxyInspecting,
    Hudsucker,
    HudsuckerInspecting,
}

impl Rival {
    /// Returns how it is reached.
    pub(crate) fn way(self) -> Way {
        match self {
            Self::OursCaptured => Way::Captured,
            _ => Way::Asking,
        }
    }

    /// Returns whether somebody else wrote it.
    pub(crate) fn is_foreign(self) -> bool {
        match self {
            Self::Direct
            | Self::Splice
            | Self::Ours
            | Self::OursLogged
            | Self::OursCaptured
            | Self::OursInspecting => false,
            Self::Squid
            | Self::Mitmproxy
            | Self::MitmproxyInspecting
            | Self::Hudsucker
            | Self::HudsuckerInspecting => true,
        }
    }

    /// Returns the same program, looking into TLS, if it can.
    pub(crate) fn inspecting(self) -> Option<Self> {
        match self {
            Self::Ours => Some(Self::OursInspecting),
            Self::Mitmproxy => Some(Self::MitmproxyInspecting),
            Self::Hudsucker => Some(Self::HudsuckerInspecting),
            _ => None,
        }
    }
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Splice => "bare splice",
            Self::Ours => "ours",
            Self::OursLogged => "ours, events to a file",
            Self::OursCaptured => "ours, captured",
            Self::OursInspecting => "ours",
            Self::Squid => "Squid",
            Self::Mitmproxy | Self::MitmproxyInspecting => "mitmproxy",
            Self::Hudsucker | Self::HudsuckerInspecting => "hudsucker",
        })
    }
}

/// A proxy that runs; dropped, it is killed.
pub(crate) struct Running {
    /// Where it listens; `None` for no proxy.
    pub(crate) address: Option<SocketAddr>,
    /// From the start of the process until it accepted a connection.
    pub(crate) ready: Duration,
    child: Option<Child>,
    _folder: TempDir,
}

impl Running {
    pub(crate) async fn start(rival: Rival, program: &Path, origin: &Origin) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        if rival == Rival::Direct {
            return Ok(Self {
                address: None,
                ready: Duration::ZERO,
                child: None,
                _folder: folder,
            });
        }
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new(program);
        arguments(&mut command, rival, (address, origin, folder.path()))?;
        let start = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.map_err(|error| format!("{}: {error}", program.display()))?;
        let mut running = Self {
            address: Some(address),
            ready: Duration::ZERO,
            child: Some(child),
            _folder: folder,
        };
        while TcpStream::connect(address).await.is_err() {
            if start.elapsed() > START {
                return Err(format!("{rival} does not listen").into());
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        running.ready = start.elapsed();
        Ok(running)
    }

    /// The resident memory in MiB, with what it shares with others.
    pub(crate) fn resident(&self) -> Result<f64> {
        let id = self.child.as_ref().ok_or("no process")?.id();
        let memory = sandbox_benches::process::memory(id)?;
        Ok(memory.private + memory.shared)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn arguments(
    command: &mut Command,
    rival: Rival,
    (address, origin, folder): (SocketAddr, &Origin, &Path),
) -> Result<()> {
    let port = address.port().to_string();
    match rival {
        Rival::Direct => {}
        Rival::Splice => drop(command.args(["splice", &address.to_string()])),
        Rival::OursCaptured => {
            let to = origin.tls.port().to_string();
            command.args(["captured", &address.to_string(), &to]);
        }
        Rival::Ours | Rival::OursLogged | Rival::OursInspecting => {
            let events = match rival {
                Rival::OursLogged => folder.join("events.jsonl").display().to_string(),
                _ => "none".into(),
            };
            if rival == Rival::OursInspecting {
                command.arg("--authority").arg(folder.join("authority.pem"));
                command
                    .arg("--root-certificates")
                    .arg(origin.certificate_file());
                command.args(["--inspect", &format!("127.0.0.0/8:{}", origin.tls.port())]);
            }
            command.args(["--listen", &address.to_string(), "--events", &events]);
            command
                .args(["--connections", "20000"])
                .stderr(Stdio::null());
            for opened in [origin.plain, origin.tls] {
                command.args(["--allow-host", &format!("127.0.0.0/8:{}", opened.port())]);
            }
        }
        Rival::Squid => {
            let file = folder.join("squid.conf");
            fs::write(&file, squid(address, folder))?;
            command.arg("-N").arg("-f").arg(file).stderr(Stdio::null());
        }
        Rival::Mitmproxy | Rival::MitmproxyInspecting => {
            command.args(["-q", "--listen-host", "127.0.0.1", "-p", &port]);
            if rival == Rival::Mitmproxy {
                // Tunnels are spliced; plain requests are read, as everybody here does.
                command.args(["--ignore-hosts", ".*"]);
            } else {
                command.args(["--set", "stream_large_bodies=1m"]);
                let trusted = origin.certificate_file().display().to_string();
                command.args([
                    "--set",
                    &format!("ssl_verify_upstream_trusted_ca={trusted}"),
                ]);
            }
            command.args(["--set", &format!("confdir={}", folder.display())]);
        }
        Rival::Hudsucker => drop(command.arg(address.to_string())),
        Rival::HudsuckerInspecting => {
            command
                .arg(address.to_string())
                .arg(origin.certificate_file());
        }
    }
    Ok(())
}

/// No cache, no log, no second thoughts.
fn squid(address: SocketAddr, folder: &Path) -> String {
    format!(
        "http_port {address}\nhttp_access allow all\ncache deny all\ncache_mem 8 MB\naccess_log none\n\
         cache_log /dev/null\npid_filename none\ncoredump_dir {}\nnetdb_filename none\npinger_enable off\n\
         via off\nforwarded_for delete\nmax_filedescriptors 20000\nclient_idle_pconn_timeout 10 minutes\n\
         shutdown_lifetime 0 seconds\n",
        folder.display()
    )
}
