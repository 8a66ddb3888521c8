//! What can go wrong with a machine, and what must be left then: one clear typed error, and nothing else.

mod guest;
mod hostile;
mod killed;
mod refused;
mod start;
