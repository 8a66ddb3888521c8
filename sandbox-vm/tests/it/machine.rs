//! Machines that boot, one after the other.

use std::time::Duration;

use sandbox_vm::hypervisor::{HypervisorExt, MachineSpec};
use tokio::io::AsyncReadExt;

use crate::support::{self, command};

/// After which a silent boot is tried once more.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn cold_boots_do_not_hang() {
    let slow = std::env::var_os("SANDBOX_SLOW").is_some();
    if !slow {
        println!("3 boots instead of 100: SANDBOX_SLOW is not set");
    }
    for round in 0..if slow { 100 } else { 3 } {
        let folder = support::folder();
        let qemu = support::microvm();
        let spec = MachineSpec::new("cold", folder.path().join("m"));
        let start = std::time::Instant::now();
        let (machine, agent) = qemu.boot(&spec, PATIENCE).await.unwrap();
        println!("boot {round}: {:?}", start.elapsed());
        assert!(start.elapsed() < PATIENCE, "it was silent and tried again");
        // The one program that an empty root has: the agent, which says that it is not for people.
        let mut running = agent.exec(command(&["/init", "x"])).await.unwrap();
        let mut text = String::new();
        let mut stderr = running.stderr.take().unwrap();
        stderr.read_to_string(&mut text).await.unwrap();
        assert!(text.contains("not by hand"), "{text}");
        assert_eq!(running.end.wait().await.unwrap().code, Some(1));
        machine.kill().await.unwrap();
        assert!(!spec.folder.exists());
    }
}
