//! How the bytes of a control connection are cut makes no difference to the messages in them, and
//! nothing that they say makes the codec panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rprocd::control::{Codec, CodecError, Message};

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<Message>, Result<(), CodecError>) {
    let (mut codec, mut messages) = (Codec::default(), Vec::new());
    for piece in pieces {
        if let Err(fault) = codec.push(piece, &mut messages) {
            return (messages, Err(fault));
        }
    }
    (messages, Ok(()))
}

fuzz_target!(|bytes: &[u8]| {
    let whole = read([bytes].into_iter());
    // The first byte says how long the pieces are.
    let step = bytes.first().map_or(1, |byte| usize::from(*byte % 64) + 1);
    assert_eq!(read(bytes.chunks(step)), whole);
    assert_eq!(read(bytes.chunks(1)), whole);
});
