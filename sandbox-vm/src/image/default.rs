//! The image where none is named: a small system of the host's own distribution, made of its own packages.
//!
//! `mmdebstrap` puts it together without touching the host and writes a tar to its output, which goes
//! straight into the image. It takes the packages from where the host takes them: apt is asked for its
//! sources, and those of the distribution's main archive for the host's release are used, nobody else's.
//! As root it works in a chroot, as an ordinary user in a user namespace (which needs `newuidmap` and a
//! range of subordinate user numbers).
//!
//! The system has what builds of C and Python projects expect, and a user `agent` (1000) who may become
//! root without a password: the wall is around the machine, not inside it. Manual pages, translations and
//! documentation are left out.

use std::fs;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use sandbox_base::ErrorKind;
use sha2::{Digest, Sha256};

use super::ImageConfig;
use super::builder::Builder;
use super::tar::{self, Whiteouts};
use crate::process::{APT_GET, Cancel, Tool};
use crate::{Error, Progress, Step};

const MMDEBSTRAP: Tool = Tool {
    program: "mmdebstrap",
    package: "mmdebstrap",
};

/// What the system has beyond the distribution's minimal base.
const PACKAGES: &[&str] = &[
    "ca-certificates",
    "curl",
    "file",
    "g++",
    "gcc",
    "git",
    "less",
    "libc6-dev",
    "make",
    "patch",
    "pkg-config",
    "procps",
    "python3",
    "python3-venv",
    "sudo",
    "xz-utils",
];

/// What is done to the system in the end; `$1` is its root. Part of the image's key.
const CUSTOMIZATION: &[&str] = &[
    r#"chroot "$1" useradd --create-home --uid 1000 --user-group --shell /bin/bash agent"#,
    r#"echo 'agent ALL=(ALL:ALL) NOPASSWD: ALL' > "$1/etc/sudoers.d/agent""#,
    r#"chmod 0440 "$1/etc/sudoers.d/agent""#,
    r#"echo sandbox > "$1/etc/hostname""#,
    r#"printf '127.0.0.1 localhost sandbox\n::1 localhost\n' > "$1/etc/hosts""#,
    r#": > "$1/etc/machine-id""#,
    r#"rm -f "$1/etc/resolv.conf" "$1/var/lib/dbus/machine-id""#,
];

/// Files of packages that are not unpacked. Also in force for packages that the guest installs.
const LEFT_OUT: &[&str] = &[
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
];

/// What this host's distribution calls itself (`man 5 os-release`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Distribution {
    id: String,
    codename: String,
}

impl Distribution {
    /// Reads the host's own.
    pub(super) fn of_host() -> Result<Self, Error> {
        let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let found = Self::parse(&text).filter(|d| ["debian", "ubuntu"].contains(&&*d.id));
        found.ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "make the default image").with_detail(
                "this host is neither Debian nor Ubuntu; name an image (a folder, a tar, an OCI layout)",
            )
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let value = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
            Some(line.trim_matches(['"', '\'']).to_owned())
        };
        let plain = |word: &String| {
            !word.is_empty()
                && word
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        Some(Self {
            id: value("ID").filter(plain)?,
            codename: value("VERSION_CODENAME").filter(plain)?,
        })
    }

    /// Mixes what identifies the default image into its key.
    pub(super) fn fingerprint(&self, key: &mut Sha256) {
        let parts = [&*self.id, &self.codename, std::env::consts::ARCH];
        for part in parts
            .iter()
            .chain(PACKAGES)
            .chain(CUSTOMIZATION)
            .chain(LEFT_OUT)
        {
            key.update((part.len() as u64).to_le_bytes());
            key.update(part);
        }
    }

    fn keyring(&self) -> String {
        format!("/usr/share/keyrings/{}-archive-keyring.gpg", self.id)
    }
}

/// Puts the system together and takes it into an image. `scratch` is a folder for what must wait.
pub(super) fn take(
    distribution: &Distribution,
    scratch: &Path,
    builder: &mut Builder<'_>,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<ImageConfig, Error> {
    let started = Instant::now();
    progress.report(Step::Bootstrapping {
        message: "collecting packages".to_owned(),
    });
    let mut command = bootstrap(distribution, scratch, cancel)?;
    let consume = |output: &mut dyn Read| {
        let output = BufReader::with_capacity(128 << 10, output);
        tar::take(output, "of mmdebstrap", Whiteouts::Ignore, builder).map(drop)
    };
    let said = |line: &str| {
        if let Some(message) = line.strip_prefix("I: ") {
            progress.report(Step::Bootstrapping {
                message: message.to_owned(),
            });
        }
    };
    let done = MMDEBSTRAP
        .stream_with(&mut command, cancel, consume, said)
        .and_then(|finished| {
            match finished.consumed {
                // A tar that ends early is what a failed program leaves: its own words are the reason.
                Err(error) if error.kind() != ErrorKind::Invalid => Err(error),
                consumed => MMDEBSTRAP
                    .expect_success(finished.status, &finished.diagnostics)
                    .and(consumed),
            }
        });
    done.map_err(|error| {
        Error::new(error.kind(), "make the default image")
            .with_detail("mmdebstrap needs the network and the apt sources of this host to work")
            .with_source(error)
    })?;
    let seconds = started.elapsed().as_secs_f32();
    tracing::info!(
        seconds,
        release = distribution.codename,
        "default image put together"
    );
    Ok(ImageConfig {
        env: vec![
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            "LANG=C.UTF-8".to_owned(),
        ],
        user: Some("agent".to_owned()),
        working_dir: Some("/home/agent".to_owned()),
        cmd: vec!["/bin/bash".to_owned()],
        ..ImageConfig::default()
    })
}

fn bootstrap(
    distribution: &Distribution,
    scratch: &Path,
    cancel: &Cancel,
) -> Result<Command, Error> {
    let mut command = MMDEBSTRAP.command();
    command.args(["--variant=minbase", "--format=tar"]);
    command.arg(format!("--include={}", PACKAGES.join(",")));
    if rustix::process::geteuid().is_root() {
        command.arg("--mode=root").env("TMPDIR", scratch);
    } else {
        check_user_namespaces()?;
        // Inside its namespace it is another user of the host, whom private folders keep out.
        command
            .arg("--mode=unshare")
            .env("TMPDIR", shared_temporary_folder())
            .current_dir("/");
    }
    for path in LEFT_OUT.iter().chain(&["force-unsafe-io"]) {
        command.arg(format!("--dpkgopt={path}"));
    }
    command.args([
        "--aptopt=APT::Install-Recommends \"false\"",
        "--aptopt=Acquire::Languages \"none\"",
    ]);
    for step in CUSTOMIZATION {
        command.arg(format!("--customize-hook={step}"));
    }
    command.args([&*distribution.codename, "-"]);
    command.args(sources(distribution, cancel)?);
    Ok(command)
}

/// Returns a folder for temporary files that other users can reach.
fn shared_temporary_folder() -> PathBuf {
    let reachable = |path: &PathBuf| {
        path.is_absolute()
            && path.ancestors().all(|folder| {
                fs::metadata(folder).is_ok_and(|meta| {
                    std::os::unix::fs::MetadataExt::mode(&meta) & 0o001 != 0 && meta.is_dir()
                })
            })
    };
    let usual = PathBuf::from("/tmp");
    [std::env::temp_dir(), usual.clone(), "/var/tmp".into()]
        .into_iter()
        .find(reachable)
        .unwrap_or(usual)
}

/// Refuses early, and with advice, what `mmdebstrap` would refuse late.
fn check_user_namespaces() -> Result<(), Error> {
    let refuse = |detail: &str| {
        Err(Error::new(
            ErrorKind::PermissionDenied,
            "make the default image as this user",
        )
        .with_detail(detail))
    };
    if !["/usr/bin/newuidmap", "/bin/newuidmap"]
        .iter()
        .any(|path| Path::new(path).exists())
    {
        return refuse("newuidmap is missing; install the package uidmap");
    }
    let uid = rustix::process::geteuid().as_raw().to_string();
    let name = user_name(&uid).unwrap_or_default();
    let has_range = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.split(':').next())
            .any(|n| n == uid || n == name)
    };
    if !has_range("/etc/subuid") || !has_range("/etc/subgid") {
        return refuse(
            "it has no subordinate user numbers; have root run \
             `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`",
        );
    }
    Ok(())
}

fn user_name(uid: &str) -> Option<String> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let line = users
        .lines()
        .find(|line| line.split(':').nth(2) == Some(uid))?;
    line.split(':').next().map(str::to_owned)
}

/// Asks apt where the host takes the distribution's packages from. Nothing where apt does not know: then
/// `mmdebstrap` takes its own default.
fn sources(distribution: &Distribution, cancel: &Cancel) -> Result<Vec<String>, Error> {
    const FORMAT: &str = "$(CREATED_BY) $(TARGET_OF) $(ORIGIN) $(COMPONENT) $(RELEASE) $(REPO_URI)";
    let mut command = APT_GET.command();
    command.args(["indextargets", "--format", FORMAT]);
    let answer = APT_GET.output(&mut command, 1 << 20, cancel)?;
    let keyring = Some(distribution.keyring()).filter(|path| Path::new(path).exists());
    Ok(parse_sources(
        &String::from_utf8_lossy(&answer),
        distribution,
        keyring.as_deref(),
    ))
}

fn parse_sources(answer: &str, distribution: &Distribution, keyring: Option<&str>) -> Vec<String> {
    let mut sources = Vec::new();
    for line in answer.lines() {
        let [created_by, target_of, origin, component, release, uri] =
            *line.split(' ').collect::<Vec<_>>()
        else {
            continue;
        };
        let suffix = release.strip_prefix(&*distribution.codename);
        let ours = (created_by, target_of) == ("Packages", "deb")
            && origin.eq_ignore_ascii_case(&distribution.id)
            && (component == "main" || distribution.id == "ubuntu" && component == "universe")
            && matches!(suffix, Some("" | "-updates" | "-security"));
        // A name and password in an address would be seen by everybody, on the command line and inside.
        if !ours || uri.contains('@') {
            continue;
        }
        let options = keyring
            .map(|path| format!("[signed-by={path}] "))
            .unwrap_or_default();
        let source = format!("deb {options}{uri} {release} {component}");
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bookworm() -> Distribution {
        Distribution {
            id: "debian".into(),
            codename: "bookworm".into(),
        }
    }

    #[test]
    fn the_distribution_is_read_with_or_without_quotes() {
        let text = "NAME=\"Debian GNU/Linux\"\nVERSION_CODENAME=bookworm\nID=\"debian\"\n";
        assert_eq!(Distribution::parse(text), Some(bookworm()));
        assert_eq!(
            Distribution::parse("ID=debian\nVERSION_CODENAME=a;b\n"),
            None
        );
    }

    #[test]
    fn only_the_main_archive_of_this_release_is_used() {
        let answer = "\
Packages deb Debian main bookworm http://mirror.test/debian/
DEP-11 deb Debian main bookworm http://mirror.test/debian/
Packages deb Debian main bookworm-security http://mirror.test/security/
Packages deb Debian main bookworm-backports http://mirror.test/debian/
Packages deb Debian main trixie http://mirror.test/debian/
Packages deb Debian non-free bookworm http://mirror.test/debian/
Packages deb Debian main bookworm-updates http://me:secret@mirror.test/debian/
Packages deb . main nodistro http://vendor.test/
Packages deb Vendor main bookworm http://vendor.test/
";
        let expected = [
            "deb http://mirror.test/debian/ bookworm main",
            "deb http://mirror.test/security/ bookworm-security main",
        ];
        assert_eq!(parse_sources(answer, &bookworm(), None), expected);
    }

    #[test]
    fn the_keyring_is_named_where_there_is_one() {
        let answer = "Packages deb Debian main bookworm http://mirror.test/debian/\n";
        let sources = parse_sources(answer, &bookworm(), Some("/k.gpg"));
        assert_eq!(
            sources,
            ["deb [signed-by=/k.gpg] http://mirror.test/debian/ bookworm main"]
        );
    }
}
