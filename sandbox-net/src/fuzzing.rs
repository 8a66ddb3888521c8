//! What the targets in `fuzz/` drive that is nobody else's business; there only with `--cfg fuzzing`.

use http::request::Parts;

pub use crate::proxy::fuzzing::{Head, answers, hello, request, requests};
#[cfg(feature = "dns")]
pub use crate::resolve::fuzzing::answer;

/// A request's head, for targets without a version of `http` of their own.
pub fn parts(method: &str, uri: &str, headers: &[(&str, &[u8])]) -> Option<Parts> {
    let mut request = http::Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).ok().map(|request| request.into_parts().0)
}
