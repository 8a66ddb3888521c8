//! A program's question to the resolver inside is answered in one message that repeats it, or not at all.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox_net::guest::names::{Heard, Known, read};

fuzz_target!(|message: &[u8]| {
    let answers = match read(message) {
        Heard::Nothing => vec![],
        Heard::Answered(answer) => vec![answer],
        Heard::Asked(question) => {
            assert!(!question.name().is_empty() && question.name().len() <= 253);
            assert!(!question.name().ends_with('.'));
            let address = Known::Address([198, 19, 0, 1].into());
            [address, Known::NoData, Known::NoSuchName, Known::Failure]
                .map(|known| question.answer(known))
                .into()
        }
        _ => unreachable!("these are all"),
    };
    for answer in answers {
        assert!(answer.len() <= 512 && answer[..2] == message[..2]);
        assert!(answer[2] & 0x80 != 0, "an answer");
        // Nobody answers an answer: two resolvers would go on for ever.
        assert_eq!(read(&answer), Heard::Nothing);
    }
});
