// SPDX-License-Identifier: GPL-2.0

//! Whatever comes in, and in whatever pieces, the assembler hands out the frames that are in it, in
//! order and whole, and holds no more memory than one frame of the longest kind.

use super::frame::{
    any_header,
    is_numbered,
    numbers_of, //
};
use crate::conn::frame::{
    Assembler,
    Bounds,
    Header,
    Malformed,
    Numbers,
    Space,
    Stop,
    FEW,
    HEADER_LEN, //
};
use crate::conn::hello::GREETING_LEN;
use crate::script::Script;
use kernel::memory;
use kernel::prelude::{
    KVVec,
    GFP_KERNEL, //
};
use std::sync::LazyLock;

/// A stream is no longer than this, which is some stages.
const LONGEST: usize = 1 << 17;

/// What a stream is made of.
fn any_stream(script: &mut Script<'_>, bounds: Bounds) -> Vec<u8> {
    let mut stream = Vec::new();
    while script.more() && stream.len() < LONGEST {
        match script.u8() % 4 {
            // A frame, or one that is a little too long.
            0 => {
                let longest = bounds.message.max(bounds.rcall).saturating_add(1);
                let len = script.number() as u32 % longest.saturating_add(1);
                let header = any_header(script, len);
                stream.extend(header.encode(any_numbers(script, &header)));
                fill(&mut stream, header.payload_len() as usize);
            }
            // A header whose payload ends too early: what follows is taken for the rest of it.
            1 => {
                let len = script.number() as u32;
                let header = any_header(script, len);
                stream.extend(header.encode(any_numbers(script, &header)));
                fill(&mut stream, script.u8().into());
            }
            // Bytes as they stand in the input.
            2 => {
                let n = script.u8();
                stream.extend(script.bytes(n.into()));
            }
            // Many bytes.
            _ => fill(
                &mut stream,
                usize::from(script.u16()) % (3 * Assembler::STAGE),
            ),
        }
    }
    stream.truncate(LONGEST);
    stream
}

/// The numbers of a frame, which are mostly as they should be.
fn any_numbers(script: &mut Script<'_>, header: &Header) -> Numbers {
    match script.u8() {
        255 => super::frame::any_numbers(script),
        n => Numbers {
            seq: if is_numbered(header) {
                u64::from(n) + 1
            } else {
                0
            },
            ack: n.into(),
        },
    }
}

/// Bytes that are not like those at any other place nearby.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let place = |i: usize| (i ^ (i >> 8).wrapping_mul(31)) as u8;
    (0..LONGEST).map(place).collect()
});

/// Adds so many bytes, less what would be too long.
fn fill(stream: &mut Vec<u8>, n: usize) {
    let start = stream.len().min(LONGEST);
    stream.extend_from_slice(&NOISE[start..][..n.min(LONGEST - start)]);
}

/// A frame, as it stands in the stream.
type Piece<'a> = (Header, Numbers, &'a [u8]);

/// The same, without an assembler.
struct Reference<'a> {
    rest: &'a [u8],
    bounds: Bounds,
}

impl<'a> Reference<'a> {
    /// The header of the next frame, if it is there.
    fn header(&self) -> Result<Option<(Header, Numbers)>, Malformed> {
        let Some(bytes) = self.rest.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let (header, numbers) = (Header::parse(bytes, self.bounds)?, numbers_of(bytes));
        if is_numbered(&header) != (numbers.seq != 0) {
            return Err(Malformed::Field);
        }
        Ok(Some((header, numbers)))
    }

    /// The next frame, if it is there.
    fn next(&mut self) -> Result<Option<Piece<'a>>, Malformed> {
        let Some((header, numbers)) = self.header()? else {
            return Ok(None);
        };
        let len = header.payload_len() as usize;
        let Some((payload, rest)) = self.rest[HEADER_LEN..].split_at_checked(len) else {
            return Ok(None);
        };
        self.rest = rest;
        Ok(Some((header, numbers, payload)))
    }
}

/// How the stream comes in.
struct Delivery<'a> {
    rest: &'a [u8],
    /// How long the pieces are, in turn.
    pieces: [usize; 4],
    /// Whether memory is short, bit by bit.
    short: u32,
    turn: usize,
}

impl Delivery<'_> {
    /// Puts a piece where it is wanted. Returns whether there was one.
    fn put(&mut self, assembler: &mut Assembler) -> bool {
        let Space { to, most } = assembler.space();
        assert!(most > 0, "no space for what comes next");
        assert!(to.capacity() - to.len() >= most, "no memory for it");
        let piece = self.pieces[self.turn % self.pieces.len()].max(1);
        self.turn += 1;
        let (now, later) = self.rest.split_at(piece.min(most).min(self.rest.len()));
        assert!(to.extend_from_slice(now, GFP_KERNEL).is_ok());
        self.rest = later;
        !now.is_empty()
    }

    fn memory_is_short(&mut self) -> bool {
        self.short = self.short.rotate_left(1);
        self.short & 1 != 0
    }
}

/// Takes out all that is complete. Returns whether the stream is good so far.
fn take(assembler: &mut Assembler, delivery: &mut Delivery<'_>, right: &mut Reference<'_>) -> bool {
    loop {
        let come = right.rest.len() - delivery.rest.len();
        let right_header = if come < HEADER_LEN {
            Ok(None)
        } else {
            right.header()
        };
        assert_eq!(assembler.header(right.bounds), right_header);
        if let Some((header, numbers, few)) = assembler.peek(right.bounds) {
            let shown = (header, numbers, few);
            assert!(few.len() <= FEW && come >= HEADER_LEN + few.len());
            if delivery.turn % 2 == 0 {
                assert_eq!(Ok(Some(shown)), right.next());
                assembler.pass(few.len());
                continue;
            }
        }
        let short = delivery.memory_is_short();
        memory::fail(short);
        let buffer = |len| Ok(KVVec::with_capacity(len, GFP_KERNEL)?);
        let next = assembler.next(right.bounds, buffer);
        memory::fail(false);
        match next {
            Ok(Some(frame)) => match right.next() {
                Ok(Some((header, numbers, payload))) => {
                    assert_eq!((frame.header, frame.numbers), (header, numbers));
                    assert!(*frame.payload == *payload, "payload of {header:?}");
                }
                other => panic!("{:?} is not there: {other:?}", frame.header),
            },
            Ok(None) => return true,
            Err(Stop::NoMemory) => assert!(short),
            Err(Stop::Malformed(what)) => {
                assert_eq!(right.next().err(), Some(what));
                return false;
            }
        }
    }
}

pub(crate) fn run(input: &[u8]) {
    const SIZES: [u32; 8] = [0, 1, 100, 4000, 5000, 8192, 20_000, 1 << 16];
    let mut script = Script::new(input);
    let bounds = Bounds {
        message: script.pick(&SIZES),
        rcall: script.pick(&SIZES),
    };
    let greets = script.bit();
    let mut pieces: [usize; 4] = [(); 4].map(|()| script.u16().into());
    // Memory comes at last.
    let short = script.u32() & !1;
    let stream = any_stream(&mut script, bounds);
    // A long stream has not thousands of pieces.
    pieces[3] = pieces[3].max(stream.len() / 256);

    memory::peak();
    let Ok(mut assembler) = Assembler::new() else {
        panic!("no stage");
    };
    let mut delivery = Delivery {
        rest: &stream,
        pieces,
        short,
        turn: 0,
    };
    let mut right = Reference {
        rest: &stream,
        bounds,
    };
    if greets {
        let greeting = loop {
            match assembler.take_exact::<GREETING_LEN>() {
                Some(greeting) => break greeting,
                None if delivery.put(&mut assembler) => {}
                None => return assert!(stream.len() < GREETING_LEN),
            }
        };
        assert!(stream.starts_with(&greeting));
        right.rest = &stream[GREETING_LEN..];
    }
    loop {
        if !take(&mut assembler, &mut delivery, &mut right) {
            break;
        }
        if !delivery.put(&mut assembler) {
            // The end of the stream: nothing is left that could be handed out.
            assert_eq!(right.next(), Ok(None));
            break;
        }
    }
    let longest = bounds.message.max(bounds.rcall) as usize;
    assert!(memory::peak() <= Assembler::STAGE + longest);
}
