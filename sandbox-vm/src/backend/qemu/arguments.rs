//! The command line, as a pure function of the machine.
//!
//! Everything that QEMU would add by itself is switched off (`-nodefaults`, `-no-user-config`), its own
//! system call filter is on, and nothing that is a secret is ever passed here: every user of the host can
//! read it. File names go into option strings, where a comma ends an option; QEMU reads a doubled comma
//! as one (`man qemu`, "blockdev").

use std::path::Path;

use crate::hypervisor::{Acceleration, Disk, MachineSpec};

/// Everything that can be emulated, but for the promise that strings are copied fast byte by byte: software
/// emulation goes round a loop for each byte, and a kernel that believes the promise copies and clears memory
/// at less than half the speed (`benches/README.md`).
const EMULATED_PROCESSOR: &str = "max,-erms,-fsrm";

/// What every machine of one backend is started with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch<'a> {
    pub(super) program: &'a Path,
    pub(super) kernel: &'a Path,
    pub(super) initrd: &'a Path,
    pub(super) acceleration: Acceleration,
    pub(super) tsc_khz: Option<u64>,
}

/// The sockets on which we wait for QEMU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Endpoints<'a> {
    pub(super) agent: &'a Path,
    pub(super) qmp: &'a Path,
}

/// Returns QEMU's program and arguments.
pub(super) fn arguments(
    launch: &Launch<'_>,
    spec: &MachineSpec,
    ends: Endpoints<'_>,
) -> Vec<String> {
    let mut line = vec![launch.program.display().to_string()];
    let mut add = |words: &[&str]| line.extend(words.iter().map(|word| (*word).to_owned()));
    add(&["-name", &format!("sandbox-{}", escape(&spec.name))]);
    add(&[
        "-no-user-config",
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
    ]);
    add(&[
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]);
    add(&[
        "-M",
        "microvm,acpi=on,rtc=on,pcie=off,x-option-roms=off,isa-serial=on,graphics=off,memory-backend=m",
    ]);
    add(&[
        "-object",
        &format!("memory-backend-memfd,id=m,size={}M", spec.memory_mib),
    ]);
    match launch.acceleration {
        Acceleration::Hardware => add(&["-accel", "kvm", "-cpu", "host"]),
        _ => add(&["-accel", "tcg,tb-size=64", "-cpu", EMULATED_PROCESSOR]),
    }
    add(&["-smp", &spec.cpus.to_string()]);
    add(&["-kernel", &launch.kernel.display().to_string()]);
    add(&["-initrd", &launch.initrd.display().to_string()]);
    add(&["-append", &kernel_line(launch)]);
    add(&["-global", "virtio-mmio.force-legacy=false"]);
    add(&[
        "-chardev",
        &format!("socket,id=qmp,path={}", path(ends.qmp)),
    ]);
    add(&["-mon", "chardev=qmp,mode=control"]);
    add(&[
        "-chardev",
        &format!("socket,id=agent,path={}", path(ends.agent)),
    ]);
    // The console of the guest becomes QEMU's own output, of which the watchdog keeps the last lines.
    add(&["-chardev", "stdio,id=console,signal=off"]);
    add(&["-device", "virtio-serial-device,id=serial"]);
    add(&[
        "-device",
        "virtserialport,bus=serial.0,nr=1,chardev=agent,name=sandbox.agent",
    ]);
    add(&["-serial", "chardev:console"]);
    add(&["-device", "virtio-rng-device"]);
    add(&["-device", "virtio-balloon-device,free-page-reporting=on"]);
    for (index, disk) in spec.disks.iter().enumerate() {
        add(&["-blockdev", &block_device(index, disk)]);
        add(&[
            "-device",
            &format!("virtio-blk-device,drive=disk{index},serial=disk{index}"),
        ]);
    }
    line
}

fn kernel_line(launch: &Launch<'_>) -> String {
    let mut line =
        String::from("console=ttyS0 quiet loglevel=3 reboot=t panic=-1 random.trust_cpu=on");
    if let Some(khz) = launch
        .tsc_khz
        .filter(|_| launch.acceleration != Acceleration::Hardware)
    {
        line.push_str(&format!(" tsc_early_khz={khz} tsc=reliable"));
    }
    line
}

fn block_device(index: usize, disk: &Disk) -> String {
    let file = path(&disk.path);
    let name = format!("driver=raw,node-name=disk{index},file.driver=file,file.filename={file}");
    if disk.read_only {
        return format!("{name},read-only=on,file.locking=off");
    }
    format!("{name},discard=unmap,file.discard=unmap,cache.no-flush=on")
}

fn path(path: &Path) -> String {
    escape(&path.display().to_string())
}

fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(acceleration: Acceleration) -> Vec<String> {
        let mut spec = MachineSpec::new("a,b", "/run/x");
        spec.disks = vec![Disk::read_only("/i,1/root"), Disk::writable("/run/x/disk")];
        let launch = Launch {
            program: Path::new("qemu"),
            kernel: Path::new("/k"),
            initrd: Path::new("/i"),
            acceleration,
            tsc_khz: Some(2_000_000),
        };
        let ends = Endpoints {
            agent: Path::new("/run/x/a"),
            qmp: Path::new("/run/x/q"),
        };
        arguments(&launch, &spec, ends)
    }

    #[test]
    fn the_filter_is_on_and_nothing_comes_by_default() {
        let line = line(Acceleration::Emulated).join(" ");
        for wanted in [
            "-nodefaults",
            "-no-user-config",
            "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        ] {
            assert!(line.contains(wanted), "{wanted} is missing");
        }
        for unwanted in ["-netdev", "-nic", "net-device"] {
            assert!(!line.contains(unwanted), "a guest has no network card");
        }
    }

    #[test]
    fn a_comma_in_a_name_does_not_start_an_option() {
        let line = line(Acceleration::Emulated).join(" ");
        assert!(line.contains("file.filename=/i,,1/root,read-only=on"));
        assert!(line.contains("sandbox-a,,b"));
    }

    #[test]
    fn the_counter_is_told_under_emulation_only() {
        assert!(
            line(Acceleration::Emulated)
                .join(" ")
                .contains("tsc_early_khz=2000000")
        );
        assert!(
            !line(Acceleration::Hardware)
                .join(" ")
                .contains("tsc_early_khz")
        );
    }
}
