use super::*;
use crate::testing_cases::cases;
use proptest::prelude::*;

/// A query as programs send it.
fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
    message
}

fn with_opt(mut message: Vec<u8>) -> Vec<u8> {
    message[11] = 1;
    message.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    message
}

fn asked(message: &[u8]) -> Question {
    match read(message) {
        Heard::Asked(question) => question,
        other => panic!("{other:?}"),
    }
}

fn code(heard: &Heard) -> u8 {
    match heard {
        Heard::Answered(answer) => answer[3] & 15,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_address_is_answered_with_the_question_as_it_was_written() {
    let message = query("Www.Example.com", TYPE_A);
    let question = asked(&message);
    assert_eq!(question.name(), "www.example.com");
    assert!(question.wants_address());
    let answer = question.answer(Known::Address(Ipv4Addr::new(198, 19, 0, 7)));
    assert_eq!(answer[..2], [0xab, 0xcd]);
    assert_eq!(answer[2..4], [0x81, 0x80], "an answer, recursion available");
    assert_eq!(answer[4..12], [0, 1, 0, 1, 0, 0, 0, 0]);
    assert_eq!(answer[12..message.len()], message[12..]);
    let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 19, 0, 7];
    assert_eq!(answer[message.len()..], record);
}

#[test]
fn what_is_not_there_is_told_apart_from_what_cannot_be_said() {
    let question = asked(&query("example.com", TYPE_AAAA));
    for (known, code) in [
        (Known::NoData, 0),
        (Known::Failure, 2),
        (Known::NoSuchName, 3),
    ] {
        let answer = question.answer(known);
        assert_eq!(answer[3] & 15, code);
        assert_eq!(answer[6..8], [0, 0], "no record");
    }
}

#[test]
fn an_opt_record_is_answered_by_one() {
    let question = asked(&with_opt(query("example.com", TYPE_A)));
    let answer = question.answer(Known::NoSuchName);
    assert_eq!(answer[10..12], [0, 1]);
    assert!(answer.ends_with(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]));
    let plain = asked(&query("example.com", TYPE_A)).answer(Known::NoSuchName);
    assert_eq!(answer.len(), plain.len() + 11);
}

#[test]
fn e80_localhost_is_the_machine_itself() {
    for name in ["localhost", "x.LOCALHOST"] {
        let Heard::Answered(answer) = read(&query(name, TYPE_A)) else {
            panic!("asked about {name}");
        };
        assert!(answer.ends_with(&[0, 4, 127, 0, 0, 1]));
    }
    let Heard::Answered(answer) = read(&query("localhost", TYPE_AAAA)) else {
        panic!("asked about localhost");
    };
    assert!(answer.ends_with(&std::net::Ipv6Addr::LOCALHOST.octets()));
    asked(&query("notlocalhost", TYPE_A));
}

#[test]
fn names_that_no_host_has_are_no_names() {
    for name in [
        "1.2.3.4.in-addr.arpa",
        "8.b.d.0.ip6.arpa",
        "",
        "a b.com",
        "ä.com",
        "a*b.com",
        "@.com",
    ] {
        assert_eq!(code(&read(&query(name, 12))), 3, "{name}");
    }
}

#[test]
fn odd_messages_are_refused_or_passed_over() {
    let good = query("example.com", TYPE_A);
    let changed = |at: usize, to: u8| {
        let mut message = good.clone();
        message[at] = to;
        read(&message)
    };
    assert_eq!(read(&good[..11]), Heard::Nothing);
    assert_eq!(changed(2, 0x81), Heard::Nothing, "an answer");
    assert_eq!(code(&changed(2, 0x29)), 4, "another operation");
    assert_eq!(code(&changed(5, 0)), 1, "no question");
    assert_eq!(code(&changed(5, 2)), 1, "two questions");
    assert_eq!(code(&changed(12, 0xc0)), 1, "compression");
    assert_eq!(code(&changed(12, 200)), 1, "a label beyond the end");
    assert_eq!(code(&read(&good[..good.len() - 1])), 1, "cut off");
    let last = good.len() - 1;
    assert_eq!(code(&changed(last, 3)), 4, "the class of Chaosnet");
}

#[test]
fn the_longest_name_fits_and_a_longer_one_does_not() {
    let label = "a".repeat(63);
    let longest = [&label[..], &label, &label, &label[..61]].join(".");
    assert_eq!(longest.len(), MAX_NAME);
    let question = asked(&with_opt(query(&longest, TYPE_A)));
    assert_eq!(question.name(), longest);
    assert!(question.answer(Known::Address(POOL)).len() <= 512);
    let longer = [&label[..], &label, &label, &label[..62]].join(".");
    assert_eq!(code(&read(&query(&longer, TYPE_A))), 1);
}

#[test]
fn a_young_address_or_one_with_a_connection_never_gets_another_name() {
    let mut pool = Pool::new(POOL, 2);
    let at = Duration::from_secs;
    let a = pool.address_of("a", at(0)).unwrap();
    let b = pool.address_of("b", at(1)).unwrap();
    assert_eq!(pool.address_of("c", at(2)), None, "both are young");
    assert_eq!(pool.hold(a, at(3)).as_deref(), Some("a"));
    let late = LEASE * 10;
    assert_eq!(pool.address_of("c", late), Some(b), "the idle one");
    assert_eq!(pool.hold(b, late).as_deref(), Some("c"));
    assert_eq!(pool.address_of("d", late * 2), None, "both are connected");
    pool.release(a, late * 2);
    assert_eq!(pool.address_of("d", late * 2), None, "just released");
    assert_eq!(pool.address_of("d", late * 2 + LEASE), Some(a));
}

#[test]
fn addresses_outside_of_the_pool_have_no_name() {
    let mut pool = Pool::new(POOL, 4);
    pool.address_of("a", Duration::ZERO).unwrap();
    assert!(pool.contains(Ipv4Addr::new(198, 19, 0, 3)));
    for outside in [[198, 19, 0, 4], [198, 18, 255, 255], [0, 0, 0, 0]] {
        assert!(!pool.contains(outside.into()));
        assert_eq!(pool.hold(outside.into(), Duration::ZERO), None);
    }
    let free = Ipv4Addr::new(198, 19, 0, 1);
    assert_eq!(pool.hold(free, Duration::ZERO), None, "not given out yet");
}

/// Something done to a pool.
#[derive(Debug, Clone)]
enum Step {
    Ask(u8),
    Hold(u8),
    Release(usize),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..12u8).prop_map(Step::Ask),
        (0..6u8).prop_map(Step::Hold),
        (0..8usize).prop_map(Step::Release),
        (0..LEASE.as_secs() * 2).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    #![proptest_config(cases())]

    /// Twin of the fuzz target `lookup`, with the one behind.
    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        drop(read(&bytes));
        let mut query = query("", TYPE_A);
        query.truncate(HEADER);
        query.extend(bytes);
        if let Heard::Asked(question) = read(&query) {
            prop_assert!(!question.name().is_empty());
            prop_assert!(question.name().len() <= MAX_NAME);
            prop_assert!(question.answer(Known::Address(POOL)).len() <= 512);
        }
    }

    #[test]
    fn a_changed_byte_never_panics(at in 0usize..44, to: u8) {
        let mut message = with_opt(query("www.example.com", TYPE_A));
        message[at] = to;
        if let Heard::Asked(question) = read(&message) {
            drop(question.answer(Known::NoData));
        }
    }

    #[test]
    fn names_are_read_as_they_were_written(name in "[a-z0-9_-]{1,20}(\\.[a-z0-9_-]{1,20}){0,5}") {
        prop_assume!(!name.ends_with("localhost"));
        let message = query(&name, TYPE_A);
        let question = asked(&message);
        prop_assert_eq!(question.name(), &name);
    }

    /// What was ever answered stays true for as long as a program may rely on it.
    #[test]
    fn no_address_means_two_names(steps in steps()) {
        let mut pool = Pool::new(POOL, 5);
        let mut now = Duration::ZERO;
        // What programs believe: the address of a name, and until when.
        let mut believed: HashMap<Ipv4Addr, (String, Duration)> = HashMap::new();
        let mut open: Vec<(Ipv4Addr, Arc<str>)> = Vec::new();
        for step in steps {
            match step {
                Step::Ask(n) => {
                    let name = format!("name{n}");
                    if let Some(address) = pool.address_of(&name, now) {
                        if let Some((other, until)) = believed.get(&address) {
                            prop_assert!(*other == name || *until <= now);
                        }
                        prop_assert!(open.iter().all(|(at, held)| *at != address || **held == *name));
                        believed.insert(address, (name, now + LEASE));
                    }
                }
                Step::Hold(n) => {
                    let address = Ipv4Addr::from_bits(POOL.to_bits() + u32::from(n));
                    let held = pool.hold(address, now);
                    prop_assert_eq!(held.is_some(), believed.contains_key(&address));
                    if let Some(held) = held {
                        prop_assert_eq!(&*held, &*believed[&address].0, "mapped back exactly");
                        open.push((address, held));
                    }
                }
                Step::Release(n) if n < open.len() => {
                    let (address, _) = open.swap_remove(n);
                    pool.release(address, now);
                }
                Step::Release(_) => {}
                Step::Wait(seconds) => now += Duration::from_secs(seconds),
            }
        }
    }
}
