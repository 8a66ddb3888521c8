//! The command line, as a pure function of the machine.
//!
//! Everything that QEMU would add by itself is switched off (`-nodefaults`, `-no-user-config`), its own
//! system call filter is on, and nothing that is a secret is ever passed here: every user of the host can
//! read it. File names go into option strings, where a comma ends an option; QEMU reads a doubled comma
//! as one (`man qemu`, "blockdev").

use std::path::Path;

use crate::hypervisor::{Acceleration, Disk, MachineSpec};
use crate::template::DiskShape;

/// Everything that can be emulated, but for the promise that strings are copied fast byte by byte: software
/// emulation goes round a loop for each byte, and a kernel that believes the promise copies and clears memory
/// at less than half the speed (`benches/README.md`).
const EMULATED_PROCESSOR: &str = "max,-erms,-fsrm";

/// The device that lets a guest give memory back. Not for machines whose memory is a file that others share:
/// QEMU 7.2 gives memory back by punching holes into the file, also when it was mapped privately, and so into
/// the memory of all others (decision record 0007).
const GIVES_MEMORY_BACK: &str = "virtio-balloon-device,free-page-reporting=on";

/// The machine type.
pub(super) const MACHINE: &str =
    "microvm,acpi=on,rtc=on,pcie=off,x-option-roms=off,isa-serial=on,graphics=off,memory-backend=m";

/// The devices that every machine has, but for its disks.
pub(super) const DEVICES: [&str; 3] = [
    "virtio-serial-device,id=serial",
    "virtserialport,bus=serial.0,nr=1,chardev=agent,name=sandbox.agent",
    "virtio-rng-device",
];

/// What every machine of one backend is started with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch<'a> {
    pub(super) program: &'a Path,
    pub(super) kernel: &'a Path,
    pub(super) initrd: &'a Path,
    pub(super) acceleration: Acceleration,
    pub(super) tsc_khz: Option<u64>,
    pub(super) origin: Origin<'a>,
}

/// Where a machine's memory is, and what is in it at the start.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin<'a> {
    /// Its own, and a kernel boots in it.
    Cold,
    /// A file, in which a kernel boots that is to be saved; with disks of these shapes, which are empty.
    Saving(&'a Path, &'a [DiskShape]),
    /// A copy on write of a file that others share, with a kernel in it that was saved.
    Saved(&'a Path),
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
    add(&["-M", MACHINE]);
    add(&["-object", &memory(launch, spec)]);
    let [accelerator, model] = processor(launch.acceleration);
    add(&["-accel", accelerator, "-cpu", model]);
    add(&["-smp", &spec.cpus.to_string()]);
    if let Origin::Saved(_) = launch.origin {
        add(&["-incoming", "defer"]);
    } else {
        add(&["-kernel", &launch.kernel.display().to_string()]);
        add(&["-initrd", &launch.initrd.display().to_string()]);
        add(&["-append", &kernel_line(launch.acceleration, launch.tsc_khz)]);
    }
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
    for device in DEVICES {
        add(&["-device", device]);
    }
    add(&["-serial", "chardev:console"]);
    if let Origin::Cold = launch.origin {
        add(&["-device", GIVES_MEMORY_BACK]);
    }
    for (index, disk) in spec.disks.iter().enumerate() {
        add(&["-blockdev", &block_device(index, disk, launch.origin)]);
        add(&[
            "-device",
            &format!("virtio-blk-device,drive=disk{index},serial=disk{index}"),
        ]);
    }
    line
}

fn memory(launch: &Launch<'_>, spec: &MachineSpec) -> String {
    let size = spec.memory_mib;
    let file = |file: &Path, share| {
        let file = path(file);
        format!("memory-backend-file,id=m,size={size}M,mem-path={file},share={share}")
    };
    match launch.origin {
        Origin::Cold => format!("memory-backend-memfd,id=m,size={size}M"),
        Origin::Saving(memory, _) => file(memory, "on"),
        Origin::Saved(memory) => file(memory, "off"),
    }
}

/// Returns the accelerator and the processor's model.
pub(super) fn processor(acceleration: Acceleration) -> [&'static str; 2] {
    match acceleration {
        Acceleration::Hardware => ["kvm", "host"],
        _ => ["tcg,tb-size=64", EMULATED_PROCESSOR],
    }
}

/// Returns what the kernel is told, with the rate of the time stamp counter where it has to be.
pub(super) fn kernel_line(acceleration: Acceleration, tsc_khz: Option<u64>) -> String {
    let mut line =
        String::from("console=ttyS0 quiet loglevel=3 reboot=t panic=-1 random.trust_cpu=on");
    if let Some(khz) = tsc_khz.filter(|_| acceleration != Acceleration::Hardware) {
        line.push_str(&format!(" tsc_early_khz={khz} tsc=reliable"));
    }
    line
}

fn block_device(index: usize, disk: &Disk, origin: Origin<'_>) -> String {
    if let Origin::Saving(_, shapes) = origin {
        // Nothing of a disk can get into what is saved.
        let bytes = shapes.get(index).map_or(0, |shape| shape.bytes);
        let access = if disk.read_only { "on" } else { "off" };
        return format!(
            "driver=null-co,node-name=disk{index},size={bytes},read-zeroes=on,read-only={access}"
        );
    }
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
        line_of(acceleration, Origin::Cold)
    }

    fn line_of(acceleration: Acceleration, origin: Origin<'_>) -> Vec<String> {
        let mut spec = MachineSpec::new("a,b", "/run/x");
        spec.disks = vec![Disk::read_only("/i,1/root"), Disk::writable("/run/x/disk")];
        let launch = Launch {
            program: Path::new("qemu"),
            kernel: Path::new("/k"),
            initrd: Path::new("/i"),
            acceleration,
            tsc_khz: Some(2_000_000),
            origin,
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

    const MEMORY: &str = "/t,1/memory";

    fn saving() -> String {
        let shapes = [DiskShape::new(4096, true), DiskShape::new(1 << 30, false)];
        let origin = Origin::Saving(Path::new(MEMORY), &shapes);
        line_of(Acceleration::Emulated, origin).join(" ")
    }

    fn saved() -> String {
        line_of(Acceleration::Emulated, Origin::Saved(Path::new(MEMORY))).join(" ")
    }

    #[test]
    fn r04_what_is_saved_has_seen_no_disk() {
        let line = saving();
        assert!(line.contains("mem-path=/t,,1/memory,share=on"));
        assert!(line.contains("null-co,node-name=disk1,size=1073741824"));
        assert!(!line.contains("/run/x/disk") && !line.contains("/i,,1/root"));
    }

    #[test]
    fn r06_memory_that_is_shared_cannot_be_written_to_or_punched() {
        let line = saved();
        assert!(line.contains("mem-path=/t,,1/memory,share=off"));
        assert!(line.contains("-incoming defer") && !line.contains("-kernel"));
        assert!(!line.contains("balloon") && !saving().contains("balloon"));
        assert!(
            self::line(Acceleration::Emulated)
                .join(" ")
                .contains("balloon")
        );
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
