//! What tests of machines share: the helper binary, the cache, the count of real microVMs.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sandbox_vm::agent::new_exec_id;
use sandbox_vm::backend::qemu::{Qemu, QemuConfig};
use sandbox_vm::channel::protocol::{Capture, Exec, Limits, Link, Root, Setup, Stdio};
use sandbox_vm::hypervisor::{Disk, MachineSpec};
use sandbox_vm::image::{Image, ImageStore};
use sandbox_vm::template::Templates;
use sandbox_vm::{Agent, Progress};
use tokio::io::AsyncReadExt;

/// Returns the helper binary: the one that is named, or the one that was built for the packages.
pub(crate) fn helper() -> PathBuf {
    static HELPER: OnceLock<PathBuf> = OnceLock::new();
    HELPER
        .get_or_init(|| match std::env::var_os("SANDBOX_HELPER") {
            Some(path) => path.into(),
            None => unpack_helper(),
        })
        .clone()
}

fn unpack_helper() -> PathBuf {
    let name = format!("{}-unknown-linux-gnu.gz", std::env::consts::ARCH);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sandbox-core/helper");
    let packed = std::fs::read(source.join(name))
        .expect("there is no helper binary; run scripts/build-helper");
    let mut program = Vec::new();
    flate2::read::GzDecoder::new(packed.as_slice())
        .read_to_end(&mut program)
        .unwrap();
    // Named by the user and by its contents: two users, or two builds, do not meet.
    let digest = blake3::hash(&packed).to_hex();
    let user = rustix::process::geteuid().as_raw();
    let folder = std::env::temp_dir().join(format!("sandbox-test-helper-{user}-{}", &digest[..16]));
    let path = folder.join("sandbox-helper");
    if !path.exists() {
        std::fs::create_dir_all(&folder).unwrap();
        let mut fresh = tempfile::NamedTempFile::new_in(&folder).unwrap();
        fresh.write_all(&program).unwrap();
        let permissions = std::fs::Permissions::from_mode(0o755);
        fresh.as_file().set_permissions(permissions).unwrap();
        fresh.into_temp_path().persist(&path).unwrap();
    }
    path
}

/// Kernels and images take minutes to make and are the same for all tests.
pub(crate) fn cache() -> PathBuf {
    match std::env::var_os("SANDBOX_TEST_CACHE") {
        Some(cache) => cache.into(),
        None => std::env::temp_dir().join("sandbox-test-cache"),
    }
}

/// A folder with a short path: sockets go into it.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("sv").tempdir().unwrap()
}

/// The configuration of real machines, accelerated where this host can, and restored from templates unless
/// `SANDBOX_TEST_TEMPLATES` is `off`.
pub(crate) fn config() -> QemuConfig {
    let templates = match std::env::var_os("SANDBOX_TEST_TEMPLATES") {
        Some(value) if value == "off" => Templates::Off,
        _ => Templates::Use,
    };
    QemuConfig::new(helper(), cache()).with_templates(templates)
}

/// The backend of real machines; counts the one that is about to boot.
pub(crate) fn microvm() -> Qemu {
    count_microvm();
    Qemu::new(config())
}

pub(crate) fn count_microvm() {
    if let Some(log) = std::env::var_os("SANDBOX_MICROVM_LOG") {
        let mut log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let name = std::thread::current().name().unwrap_or("?").to_owned();
        log.write_all(format!("{name}\n").as_bytes()).unwrap();
    }
}

/// Describes a machine on the default image with a writable layer, in `folder`.
pub(crate) async fn with_default_image(folder: &Path) -> MachineSpec {
    let store = ImageStore::new(&cache());
    let image = store.prepare(&Image::Default, Progress::silent()).await;
    let layer = folder.join("layer.ext4");
    sandbox_vm::disk::create(&cache(), 1 << 30, &layer)
        .await
        .unwrap();
    let mut spec = MachineSpec::new("test", folder.join("m"));
    spec.disks = vec![Disk::read_only(image.unwrap().path), Disk::writable(layer)];
    spec.setup = Setup {
        root: Some(Root {
            lower: "disk0".into(),
            lower_type: "erofs".into(),
            upper: Some(("disk1".into(), "ext4".into())),
        }),
        hostname: "test".into(),
        limits: Limits {
            processes: Some(1024),
            open_files: Some(4096),
        },
        capture: Some(capture()),
        ..Setup::default()
    };
    spec
}

/// Asks the helper's agent to take what leaves the machine; nobody serves it at the other end.
pub(crate) fn capture() -> Capture {
    Capture {
        service: "egress-captured".into(),
        link: Link {
            address: [198, 18, 0, 2].into(),
            gateway: [198, 18, 0, 1].into(),
            prefix: 30,
        },
        ports: vec![80, 443],
    }
}

/// A command with both outputs.
pub(crate) fn command(words: &[&str]) -> Exec {
    Exec {
        id: new_exec_id().unwrap(),
        argv: words.iter().map(|w| w.as_bytes().to_vec()).collect(),
        env: vec![],
        env_remove: vec![],
        env_clear: false,
        cwd: None,
        user: None,
        stdio: vec![Stdio::Out, Stdio::Err],
        terminal: None,
        timeout_ms: None,
    }
}

/// Tells whether a process of the host runs; one that ended and waits to be reaped does not.
pub(crate) fn runs(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    !state.starts_with('Z')
}

/// Waits for what must come to pass soon; the bound is for a test that hangs.
pub(crate) async fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "not so: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Runs a script, which has to succeed, and returns what it says.
pub(crate) async fn says(agent: &Agent, script: &str) -> String {
    let mut running = agent.exec(command(&["sh", "-c", script])).await.unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    let (mut stdout, mut stderr) = (
        running.stdout.take().unwrap(),
        running.stderr.take().unwrap(),
    );
    stdout.read_to_string(&mut out).await.unwrap();
    stderr.read_to_string(&mut err).await.unwrap();
    let exit = running.end.wait().await.unwrap();
    assert_eq!(exit.code, Some(0), "{script}: {out}{err}");
    out
}
