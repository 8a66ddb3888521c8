//! What a template must have in common with a machine that is restored from it.

use serde::{Deserialize, Serialize};

/// All that a saved machine depends on. A machine that differs in any of it needs another template.
///
/// Not part of it: what disks hold, which nothing saved has seen; and the rate of the time stamp counter,
/// which no two measurements agree on to the last digit, and which is compared with a tolerance instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TemplateKey {
    /// The layout of the saved files.
    pub format: u32,
    /// The hypervisor's program and version, as it says itself.
    pub hypervisor: String,
    /// The machine type with its options.
    pub machine: String,
    /// The accelerator with its options.
    pub accelerator: String,
    /// The guest's processor model.
    pub processor: String,
    /// The host's processor and its features.
    pub host_processor: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The digest of the kernel.
    pub kernel: String,
    /// What the kernel is told, but for the rate of the time stamp counter.
    pub kernel_line: String,
    /// The digest of the initial ramdisk: agent and modules.
    pub ramdisk: String,
    /// All devices but disks, in their order.
    pub devices: Vec<String>,
    /// The disks, in their order.
    pub disks: Vec<DiskShape>,
}

/// What a guest's kernel knows of a disk before it has read any of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DiskShape {
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether it can only be read.
    pub read_only: bool,
}

impl DiskShape {
    /// A disk of so many bytes.
    pub fn new(bytes: u64, read_only: bool) -> Self {
        Self { bytes, read_only }
    }
}

impl TemplateKey {
    /// Returns the BLAKE3 digest of everything in it, in hexadecimal.
    pub fn digest(&self) -> String {
        // A structure of text and numbers always has a form in JSON, and fields come in their order.
        let text = serde_json::to_vec(self).unwrap_or_default();
        blake3::hash(&text).to_hex().to_string()
    }

    /// Returns the names of what keeps a machine of this key from going on as one of `other`. What it booted from
    /// is not part of that: it has booted.
    #[cfg_attr(
        not(target_os = "linux"),
        allow(dead_code, reason = "Linux has the only backend so far")
    )]
    pub(crate) fn differences(&self, other: &Self) -> Vec<&'static str> {
        let compared = [
            ("hypervisor", self.hypervisor == other.hypervisor),
            ("machine", self.machine == other.machine),
            ("accelerator", self.accelerator == other.accelerator),
            ("processor", self.processor == other.processor),
            (
                "host processor",
                self.host_processor == other.host_processor,
            ),
            ("processors", self.cpus == other.cpus),
            ("memory", self.memory_mib == other.memory_mib),
            ("devices", self.devices == other.devices),
            ("disks", self.disks == other.disks),
        ];
        let differing = compared.into_iter().filter(|(_, same)| !same);
        differing.map(|(name, _)| name).collect()
    }
}

/// Returns what tells this host's processor from others: two hosts may share a cache.
#[cfg(target_os = "linux")]
pub(crate) fn host_processor() -> String {
    processor_of(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

/// Picks the lines of the first processor that say what it can do.
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "Linux has the only backend so far")
)]
fn processor_of(cpuinfo: &str) -> String {
    const TELLING: [&str; 6] = [
        "vendor_id",
        "cpu family",
        "model",
        "model name",
        "stepping",
        "flags",
    ];
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let lines = first
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim(), value.trim()));
    lines
        .filter(|(name, _)| TELLING.contains(name))
        .map(|(name, value)| format!("{name}={value};"))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn key() -> TemplateKey {
        TemplateKey {
            format: 1,
            hypervisor: "QEMU 7.2".into(),
            machine: "microvm".into(),
            accelerator: "tcg".into(),
            processor: "max".into(),
            host_processor: "model=1;".into(),
            cpus: 1,
            memory_mib: 512,
            kernel: "k".into(),
            kernel_line: "quiet".into(),
            ramdisk: "r".into(),
            devices: vec!["a".into(), "b".into()],
            disks: vec![DiskShape {
                bytes: 4096,
                read_only: true,
            }],
        }
    }

    #[test]
    fn the_same_key_has_the_same_digest() {
        assert_eq!(key().digest(), key().digest());
        assert_eq!(key().digest().len(), 64);
    }

    #[test]
    fn r07_each_component_changes_the_digest() {
        let disk = |bytes, read_only| DiskShape { bytes, read_only };
        type Change = fn(&mut TemplateKey);
        let changes: [(&str, Change); 13] = [
            ("format", |k| k.format += 1),
            ("hypervisor", |k| k.hypervisor.push('1')),
            ("machine", |k| k.machine.push_str(",acpi=on")),
            ("accelerator", |k| k.accelerator = "kvm".into()),
            ("processor", |k| k.processor.push_str(",-erms")),
            ("host_processor", |k| {
                k.host_processor.push_str("flags=avx;")
            }),
            ("cpus", |k| k.cpus += 1),
            ("memory_mib", |k| k.memory_mib += 1),
            ("kernel", |k| k.kernel.push('1')),
            ("kernel_line", |k| k.kernel_line.push('1')),
            ("ramdisk", |k| k.ramdisk.push('1')),
            ("devices", |k| k.devices.reverse()),
            ("disks", |k| k.disks[0].bytes += 512),
        ];
        // No field is left out: the compiler counts them, by what a key is made of in JSON.
        let fields = serde_json::to_value(key()).unwrap();
        let mut named: Vec<&str> = changes.iter().map(|(name, _)| *name).collect();
        let mut present: Vec<&str> = fields.as_object().unwrap().keys().map(|k| &**k).collect();
        named.sort_unstable();
        present.sort_unstable();
        assert_eq!(named, present);
        let mut seen = vec![key().digest()];
        for (name, change) in changes {
            let mut changed = key();
            change(&mut changed);
            assert!(!seen.contains(&changed.digest()), "{name}");
            seen.push(changed.digest());
        }
        let mut disks = key();
        disks.disks = vec![disk(4096, false)];
        assert!(!seen.contains(&disks.digest()));
        disks.disks = vec![disk(4096, true), disk(4096, true)];
        assert!(!seen.contains(&disks.digest()));
    }

    #[test]
    fn r13_what_a_machine_booted_from_does_not_keep_it_from_going_on() {
        let mut other = key();
        other.kernel.push('1');
        other.kernel_line.push('1');
        other.ramdisk.push('1');
        assert!(key().differences(&other).is_empty());
        other.hypervisor.push('1');
        other.disks[0].bytes += 512;
        assert_eq!(key().differences(&other), ["hypervisor", "disks"]);
    }

    #[test]
    fn r07_text_does_not_run_over_from_one_field_into_the_next() {
        let (mut a, mut b) = (key(), key());
        (a.machine, a.accelerator) = ("ab".into(), "c".into());
        (b.machine, b.accelerator) = ("a".into(), "bc".into());
        assert_ne!(a.digest(), b.digest());
    }

    #[test]
    fn a_processor_is_told_by_its_features_and_not_by_its_speed() {
        let text = |mhz: &str, flags: &str| {
            let one =
                format!("processor\t: 0\nmodel\t\t: 6\ncpu MHz\t\t: {mhz}\nflags\t: {flags}\n");
            processor_of(&format!("{one}\n{one}"))
        };
        assert_eq!(text("2000.1", "fpu avx"), "model=6;flags=fpu avx;");
        assert_eq!(text("2000.1", "fpu avx"), text("2100.7", "fpu avx"));
        assert_ne!(text("2000.1", "fpu avx"), text("2000.1", "fpu"));
    }
}
