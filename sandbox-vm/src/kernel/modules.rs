//! Which modules to load, and in which order. Pure: what a module needs is asked of a function.
//!
//! The answer lists every module after all that it needs, and no module twice. A name that the kernel has
//! built in needs no file and is left out. Soft dependencies are followed where a module of that name
//! exists and are otherwise ignored, as `modprobe` does; aliases are not resolved (a soft dependency on
//! `crc32c` is an alias of whatever implements it: name the implementation in the wanted list where a
//! kernel does not have it built in).

use std::collections::HashMap;

use super::modinfo::{ModuleInfo, normalize};

/// A module that a guest should have.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Wanted {
    /// The module's name, as in `modprobe NAME`.
    pub name: String,
    /// Whether a kernel that has it neither as a module nor built in is acceptable.
    pub optional: bool,
}

impl Wanted {
    /// Asks for a module without which the guest does not work.
    pub fn required(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            optional: false,
        }
    }

    /// Asks for a module that is loaded where there is one.
    pub fn optional(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            optional: true,
        }
    }
}

/// What a guest needs that has its devices on virtio over memory-mapped I/O or PCI, an EROFS root and an
/// ext4 layer joined by overlayfs.
pub fn virtio_guest() -> Vec<Wanted> {
    let required = ["virtio_blk", "virtio_console", "overlay", "erofs", "ext4"];
    let optional = [
        "virtio_mmio",
        "virtio_pci",
        "virtio_rng",
        "virtio_balloon",
        "crc32c_generic",
        // The way out for programs that know of no proxy.
        "veth",
    ];
    let optional = optional.into_iter().map(Wanted::optional);
    required
        .into_iter()
        .map(Wanted::required)
        .chain(optional)
        .collect()
}

/// Where a name leads in one kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lookup {
    Builtin,
    Module(ModuleInfo),
    Missing,
}

/// Why there is no order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum OrderError<E> {
    /// A required module, or one that it depends on, is neither a module nor built in.
    Missing {
        name: String,
        needed_by: Option<String>,
    },
    /// The modules need one another.
    Cycle { name: String },
    /// The lookup failed.
    Lookup(E),
}

/// Returns the names of the modules to load for `wanted`, each after what it needs.
pub(super) fn load_order<E>(
    wanted: &[Wanted],
    lookup: impl FnMut(&str) -> Result<Lookup, E>,
) -> Result<Vec<String>, OrderError<E>> {
    let mut walk = Walk {
        lookup,
        state: HashMap::new(),
        order: Vec::new(),
    };
    for wanted in wanted {
        let name = normalize(&wanted.name);
        if !walk.visit(&name)? && !wanted.optional {
            return Err(OrderError::Missing {
                name,
                needed_by: None,
            });
        }
    }
    Ok(walk.order)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Done { exists: bool },
}

struct Walk<F> {
    lookup: F,
    state: HashMap<String, State>,
    order: Vec<String>,
}

/// One module whose needs are being visited.
struct Frame {
    name: String,
    needs: std::vec::IntoIter<(String, bool)>,
}

impl<E, F: FnMut(&str) -> Result<Lookup, E>> Walk<F> {
    /// Visits a module depth first, without recursion; answers whether it exists.
    fn visit(&mut self, name: &str) -> Result<bool, OrderError<E>> {
        let mut stack = Vec::new();
        let exists = self.enter(name, &mut stack)?;
        while let Some(frame) = stack.last_mut() {
            let needed_by = frame.name.clone();
            match frame.needs.next() {
                Some((need, soft)) => {
                    let cycle = self.state.get(&need) == Some(&State::Open);
                    if cycle && !soft {
                        return Err(OrderError::Cycle { name: need });
                    }
                    if !cycle && !self.enter(&need, &mut stack)? && !soft {
                        return Err(OrderError::Missing {
                            name: need,
                            needed_by: Some(needed_by),
                        });
                    }
                }
                None => {
                    stack.pop();
                    self.state
                        .insert(needed_by.clone(), State::Done { exists: true });
                    self.order.push(needed_by);
                }
            }
        }
        Ok(exists)
    }

    fn enter(&mut self, name: &str, stack: &mut Vec<Frame>) -> Result<bool, OrderError<E>> {
        if let Some(State::Done { exists }) = self.state.get(name) {
            return Ok(*exists);
        }
        let found = (self.lookup)(name).map_err(OrderError::Lookup)?;
        let exists = found != Lookup::Missing;
        if let Lookup::Module(info) = found {
            self.state.insert(name.to_owned(), State::Open);
            let soft = info.softly.into_iter().map(|need| (need, true));
            let hard = info.depends.into_iter().map(|need| (need, false));
            let needs: Vec<_> = soft.chain(hard).collect();
            stack.push(Frame {
                name: name.to_owned(),
                needs: needs.into_iter(),
            });
        } else {
            self.state.insert(name.to_owned(), State::Done { exists });
        }
        Ok(exists)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn module(depends: &[&str], softly: &[&str]) -> Lookup {
        let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        Lookup::Module(ModuleInfo {
            depends: owned(depends),
            softly: owned(softly),
        })
    }

    fn kernel(name: &str) -> Result<Lookup, Infallible> {
        Ok(match name {
            "virtio_ring" | "lonely" => module(&[], &[]),
            "virtio" => module(&["virtio_ring"], &[]),
            "virtio_blk" => module(&["virtio", "virtio_ring"], &[]),
            "libcrc32c" => module(&[], &["crc32c", "lonely"]),
            "erofs" => module(&["libcrc32c"], &[]),
            "broken" => module(&["gone"], &[]),
            "chicken" => module(&["egg"], &[]),
            "egg" => module(&["chicken"], &[]),
            "softly_a" => module(&[], &["softly_b"]),
            "softly_b" => module(&[], &["softly_a"]),
            "ext4" => Lookup::Builtin,
            _ => Lookup::Missing,
        })
    }

    fn order(names: &[&str]) -> Result<Vec<String>, OrderError<Infallible>> {
        let wanted: Vec<_> = names.iter().map(|&n| Wanted::required(n)).collect();
        load_order(&wanted, kernel)
    }

    #[test]
    fn each_module_comes_once_and_after_what_it_needs() {
        let names = order(&["virtio-blk", "ext4", "erofs", "virtio"]).unwrap();
        assert_eq!(
            names,
            [
                "virtio_ring",
                "virtio",
                "virtio_blk",
                "lonely",
                "libcrc32c",
                "erofs"
            ]
        );
    }

    #[test]
    fn an_unknown_name_is_an_error_unless_it_is_optional() {
        let missing = OrderError::Missing {
            name: "none".into(),
            needed_by: None,
        };
        assert_eq!(order(&["none"]), Err(missing));
        assert_eq!(load_order(&[Wanted::optional("none")], kernel), Ok(vec![]));
    }

    #[test]
    fn a_missing_dependency_names_who_needs_it() {
        let missing = OrderError::Missing {
            name: "gone".into(),
            needed_by: Some("broken".into()),
        };
        assert_eq!(order(&["broken"]), Err(missing));
    }

    #[test]
    fn a_cycle_is_an_error_and_a_soft_one_is_not() {
        assert_eq!(
            order(&["egg"]),
            Err(OrderError::Cycle { name: "egg".into() })
        );
        assert_eq!(order(&["softly_a"]).unwrap(), ["softly_b", "softly_a"]);
    }

    proptest! {
        /// Module `n` may need only modules with a smaller number, so there is always an order.
        #[test]
        fn any_graph_without_cycles_is_ordered(
            needs in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..4), 1..40),
            wanted in prop::collection::vec(any::<prop::sample::Index>(), 1..6),
        ) {
            let depends = |n: usize| -> Vec<String> {
                if n == 0 { return vec![]; }
                needs[n].iter().map(|i| i.index(n).to_string()).collect()
            };
            let wanted: Vec<_> = wanted.iter().map(|i| Wanted::required(i.index(needs.len()).to_string())).collect();
            let order = load_order(&wanted, |name| {
                let n = name.parse::<usize>().unwrap();
                Ok::<_, Infallible>(Lookup::Module(ModuleInfo { depends: depends(n), softly: vec![] }))
            }).unwrap();
            for wanted in &wanted {
                prop_assert!(order.contains(&wanted.name));
            }
            for (at, name) in order.iter().enumerate() {
                prop_assert!(!order[..at].contains(name));
                for need in depends(name.parse().unwrap()) {
                    prop_assert!(order[..at].contains(&need), "{need} before {name}");
                }
            }
        }
    }
}
