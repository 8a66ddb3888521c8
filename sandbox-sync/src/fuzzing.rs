//! What the targets in `fuzz/` drive; there only with `--cfg fuzzing`.

pub use crate::base::read_for_fuzzing as base;
pub use crate::guest::read_for_fuzzing as host;
pub use crate::peer::hear_for_fuzzing as guest;
pub use crate::review::read_undo_for_fuzzing as undo;
