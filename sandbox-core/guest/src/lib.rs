//! The one helper binary: agent inside the guest, watchdog and supervisor outside.
