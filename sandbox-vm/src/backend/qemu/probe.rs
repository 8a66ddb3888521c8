//! Whether KVM boots a guest here, found out once per boot of the host.
//!
//! `/dev/kvm` that opens proves nothing: on hosts that are virtual machines themselves it may create
//! virtual machines that never get anywhere. So guests are booted, with the processor that machines get:
//!
//! 1. a tiny one, 512 bytes of firmware (`probe.S`) that switch to 64-bit mode with paging and write one
//!    byte to the port of QEMU's `isa-debug-exit` device, which ends QEMU with an exit code that nothing
//!    else gives; a tenth of a second, and no kernel needed;
//! 2. where that works, before the first machine: the kernel itself, until its agent says a word.
//!
//! The answers are kept in the cache with the host's boot identity.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use sandbox_base::ErrorKind;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::config::{AccelerationPolicy, QemuConfig};
use crate::Error;
use crate::hypervisor::{Acceleration, Availability};

/// How long the tiny guest may take. It runs in about a tenth of a second, QEMU's start included.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the tiny guest writes; QEMU exits with twice that plus one.
const SIGN_OF_LIFE: u8 = 0x2a;

/// What was found out, for one boot of the host and one QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Finding {
    boot_id: String,
    qemu: String,
    kvm: Result<(), String>,
}

/// Finds out how machines would run here.
pub(super) async fn probe(config: &QemuConfig) -> Result<Availability, Error> {
    let version = version(&config.program).await?;
    let mut notes = Vec::new();
    let acceleration = match config.acceleration {
        AccelerationPolicy::Emulate => Acceleration::Emulated,
        policy => match kvm(config, &version).await {
            Ok(()) => Acceleration::Hardware,
            Err(reason) if policy == AccelerationPolicy::RequireHardware => {
                return Err(Error::new(ErrorKind::Unsupported, "use KVM").with_detail(reason));
            }
            Err(reason) => {
                notes.push(format!("no hardware acceleration: {reason}"));
                Acceleration::Emulated
            }
        },
    };
    if cfg!(not(target_arch = "x86_64")) {
        let detail = "machines of this backend are x86-64 so far";
        return Err(Error::new(ErrorKind::Unsupported, "use QEMU").with_detail(detail));
    }
    Ok(Availability {
        version,
        acceleration,
        notes,
    })
}

async fn version(program: &Path) -> Result<String, Error> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| {
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            let kind = if missing {
                ErrorKind::Unsupported
            } else {
                ErrorKind::from(&error)
            };
            Error::new(kind, format!("run {}", program.display()))
                .with_source(error)
                .with_detail(
                    "install QEMU (the package qemu-system-x86 on Debian), or name the program",
                )
        })?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or("QEMU").trim().to_owned())
}

/// Tells whether KVM boots a guest, or why not.
async fn kvm(config: &QemuConfig, qemu: &str) -> Result<(), String> {
    if let Err(error) = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
    {
        return Err(match error.kind() {
            std::io::ErrorKind::NotFound => "there is no /dev/kvm".into(),
            std::io::ErrorKind::PermissionDenied => {
                "no permission for /dev/kvm; being in the group kvm gives it".into()
            }
            _ => format!("/dev/kvm: {error}"),
        });
    }
    let (boot_id, path) = (boot_id(), answer_path(config));
    if let Some(known) = remembered(&path, &boot_id, qemu) {
        return known;
    }
    let kvm = boot_tiny_guest(config, "kvm", "host").await;
    remember(
        &path,
        &Finding {
            boot_id,
            qemu: qemu.to_owned(),
            kvm: kvm.clone(),
        },
    );
    kvm
}

/// Notes that the tiny guest booted and the kernel did not, so that nobody tries again before the host
/// has booted anew.
pub(super) fn kernel_did_not_boot(config: &QemuConfig, qemu: &str) -> String {
    let reason = "/dev/kvm runs instructions, but the kernel did not boot on it".to_owned();
    let finding = Finding {
        boot_id: boot_id(),
        qemu: qemu.to_owned(),
        kvm: Err(reason.clone()),
    };
    remember(&answer_path(config), &finding);
    reason
}

fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

fn answer_path(config: &QemuConfig) -> PathBuf {
    config.cache.join("probe").join("kvm.json")
}

fn remembered(path: &Path, boot_id: &str, qemu: &str) -> Option<Result<(), String>> {
    let finding: Finding = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let same = !boot_id.is_empty() && finding.boot_id == boot_id && finding.qemu == qemu;
    same.then_some(finding.kvm)
}

fn remember(path: &Path, finding: &Finding) {
    let kept = fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))
        .and_then(|()| sandbox_base::durable::write(path, &serde_json::to_vec(finding)?));
    if let Err(error) = kept {
        tracing::debug!(%error, "the probe's answer is not kept");
    }
}

/// Boots the tiny guest under an accelerator.
async fn boot_tiny_guest(config: &QemuConfig, accelerator: &str, cpu: &str) -> Result<(), String> {
    let firmware = write_firmware(&config.cache).map_err(|error| format!("firmware: {error}"))?;
    let mut qemu = Command::new(&config.program)
        .args([
            "-no-user-config",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args([
            "-M",
            "microvm,rtc=off,pit=off,pic=off,isa-serial=off",
            "-m",
            "16",
        ])
        .args(["-accel", accelerator, "-cpu", cpu])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-bios"])
        .arg(firmware)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| error.to_string())?;
    let Ok(status) = tokio::time::timeout(PATIENCE, qemu.wait()).await else {
        drop(qemu.kill().await);
        let seconds = PATIENCE.as_secs();
        return Err(format!(
            "/dev/kvm opens, but a guest did not boot on it within {seconds} s"
        ));
    };
    match status.map_err(|error| error.to_string())?.code() {
        Some(code) if code == i32::from(SIGN_OF_LIFE) * 2 + 1 => Ok(()),
        other => Err(format!(
            "a guest failed to boot on /dev/kvm (QEMU's exit code: {other:?})"
        )),
    }
}

fn write_firmware(cache: &Path) -> std::io::Result<PathBuf> {
    let path = cache.join("probe").join("firmware.bin");
    fs::create_dir_all(cache.join("probe"))?;
    sandbox_base::durable::write(&path, &firmware())?;
    Ok(path)
}

/// Returns 64 KiB that end with the tiny guest.
fn firmware() -> Vec<u8> {
    let code = include_bytes!("probe.bin");
    let mut image = vec![0xf4; 64 * 1024 - code.len()];
    image.extend(code);
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_tiny_guest_boots_where_a_guest_can_boot() {
        let cache = tempfile::tempdir().unwrap();
        let config = QemuConfig::new("/nonexistent", cache.path());
        assert_eq!(boot_tiny_guest(&config, "tcg", "max").await, Ok(()));
    }

    #[tokio::test]
    async fn a_missing_program_says_what_to_install() {
        let config = QemuConfig::new("/nonexistent", "/nonexistent").with_program("/no/qemu");
        let error = probe(&config).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("qemu-system-x86"));
    }

    #[test]
    fn the_tiny_guest_is_what_its_source_says() {
        let folder = tempfile::tempdir().unwrap();
        let (object, binary) = (
            folder.path().join("probe.o"),
            folder.path().join("probe.bin"),
        );
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/backend/qemu/probe.S");
        let run =
            |command: &mut std::process::Command| assert!(command.status().unwrap().success());
        run(std::process::Command::new("as")
            .arg(source)
            .arg("-o")
            .arg(&object));
        run(std::process::Command::new("ld")
            .args(["-Ttext=0xfe00", "--oformat=binary", "-o"])
            .arg(&binary)
            .arg(&object));
        assert_eq!(fs::read(binary).unwrap(), include_bytes!("probe.bin"));
    }

    #[test]
    fn an_answer_of_another_boot_is_not_believed() {
        let cache = tempfile::tempdir().unwrap();
        let path = cache.path().join("kvm.json");
        let finding = Finding {
            boot_id: "a".into(),
            qemu: "7".into(),
            kvm: Ok(()),
        };
        remember(&path, &finding);
        assert_eq!(remembered(&path, "a", "7"), Some(Ok(())));
        assert_eq!(remembered(&path, "b", "7"), None);
        assert_eq!(remembered(&path, "a", "8"), None);
    }
}
