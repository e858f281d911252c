// SPDX-License-Identifier: GPL-2.0

//! A header is taken exactly where the table at the beginning of `conn/frame.rs` says so, and is
//! then the same when it is encoded again.

use crate::conn::credit::Lane;
use crate::conn::frame::{
    Bounds,
    Bye,
    Header,
    Malformed,
    Numbers,
    Outcome,
    HEADER_LEN, //
};
use crate::script::Script;

type Bytes = [u8; HEADER_LEN];

/// A header, with the fields that are written in it.
struct Fields {
    len: u32,
    kind: u8,
    flags: u8,
    reserved: u16,
    numbers: Numbers,
    id: u64,
    tag: u32,
    arg: i32,
}

impl Fields {
    fn of(bytes: &Bytes) -> Self {
        let mut script = Script::new(bytes);
        let (len, kind, flags, reserved) = (script.u32(), script.u8(), script.u8(), script.u16());
        let numbers = any_numbers(&mut script);
        Self {
            len,
            kind,
            flags,
            reserved,
            numbers,
            id: script.u64(),
            tag: script.u32(),
            arg: script.u32() as i32,
        }
    }

    /// The header that this is, if it is one.
    fn header(&self, bounds: Bounds) -> Option<Header> {
        let (len, flags, id, tag, arg) = (self.len, self.flags, self.id, self.tag, self.arg);
        let header = match (self.kind, flags, id, arg) {
            (1, 0, 0, 0) => Header::Message { tag, len },
            (2, 0, 0, 0) => Header::Call { func: tag, len },
            (3, 0, _, _) => Header::CallSync {
                id,
                func: tag,
                reply_max: arg as u32,
                len,
            },
            (4, _, _, _) => Header::Reply {
                id,
                outcome: *OUTCOMES.get(usize::from(flags))?,
                status: arg,
                needed: tag,
                len,
            },
            (5, 0, _, 0) => Header::Credit {
                lane: *Lane::ALL.get(tag as usize)?,
                limit: id,
            },
            (6, 0, 0, 0) if tag < 2 => Header::Ping { answer: tag == 1 },
            (7, 0, 0, 0) => Header::Bye(*BYES.get(tag as usize)?),
            (8, 0, 0, 0) if tag == 0 => Header::Open,
            _ => return None,
        };
        let fits = self.reserved == 0 && len <= bound(&header, bounds);
        (fits && makes_sense(&header, bounds)).then_some(header)
    }
}

/// By their numbers.
const OUTCOMES: [Outcome; 6] = [
    Outcome::Ran,
    Outcome::NoHandler,
    Outcome::ArgsTooLong,
    Outcome::ReplyTooLong,
    Outcome::NoMemory,
    Outcome::Stopping,
];

/// By their numbers.
const BYES: [Bye; 5] = [
    Bye::Stopping,
    Bye::AdminDown,
    Bye::Reconnect,
    Bye::Replaced,
    Bye::Protocol,
];

/// How long the payload of such a frame may be.
fn bound(header: &Header, bounds: Bounds) -> u32 {
    match header {
        Header::Message { .. } => bounds.message,
        Header::Call { .. } | Header::CallSync { .. } | Header::Reply { .. } => bounds.rcall,
        Header::Credit { .. } | Header::Ping { .. } | Header::Bye(_) | Header::Open => 0,
    }
}

fn makes_sense(header: &Header, bounds: Bounds) -> bool {
    match *header {
        Header::CallSync { reply_max, .. } => reply_max <= bounds.rcall,
        Header::Reply {
            outcome,
            needed,
            len,
            ..
        } => outcome == Outcome::ReplyTooLong || needed == len,
        _ => true,
    }
}

/// Any header, also one that nobody should send.
pub(crate) fn any_header(script: &mut Script<'_>, len: u32) -> Header {
    match script.u8() % 8 {
        0 => Header::Message {
            tag: script.u32(),
            len,
        },
        1 => Header::Call {
            func: script.u32(),
            len,
        },
        2 => Header::CallSync {
            id: script.u64(),
            func: script.u32(),
            reply_max: script.number() as u32,
            len,
        },
        3 => {
            let needed = if script.bit() { script.u32() } else { len };
            Header::Reply {
                id: script.u64(),
                outcome: script.pick(&OUTCOMES),
                status: script.u32() as i32,
                needed,
                len,
            }
        }
        4 => Header::Credit {
            lane: script.pick(&Lane::ALL),
            limit: script.number(),
        },
        5 => Header::Ping {
            answer: script.bit(),
        },
        6 => Header::Open,
        _ => Header::Bye(script.pick(&BYES)),
    }
}

/// Any numbers.
pub(crate) fn any_numbers(script: &mut Script<'_>) -> Numbers {
    Numbers {
        seq: script.u64(),
        ack: script.u64(),
    }
}

/// The numbers of a header.
pub(crate) fn numbers_of(bytes: &Bytes) -> Numbers {
    Fields::of(bytes).numbers
}

/// Whether such a frame has a number of its own.
pub(crate) fn is_numbered(header: &Header) -> bool {
    match header {
        Header::Message { .. }
        | Header::Call { .. }
        | Header::CallSync { .. }
        | Header::Reply { .. } => true,
        Header::Credit { .. } | Header::Ping { .. } | Header::Bye(_) | Header::Open => false,
    }
}

/// Bounds of all sizes.
fn any_bounds(script: &mut Script<'_>) -> Bounds {
    const SIZES: [u32; 8] = [1, 100, 4096, 1 << 16, 1 << 20, 16 << 20, 1 << 30, u32::MAX];
    Bounds {
        message: script.pick(&SIZES),
        rcall: script.pick(&SIZES),
    }
}

/// Some bytes are parsed.
fn received(bytes: &Bytes, bounds: Bounds) {
    let parsed = Header::parse(bytes, bounds);
    assert_eq!(parsed.ok(), Fields::of(bytes).header(bounds), "{parsed:?}");
    match parsed {
        Ok(header) => {
            assert!(header.payload_len() <= bound(&header, bounds));
            assert_eq!(header.encode(numbers_of(bytes)), *bytes);
            assert_eq!(header.is_sequenced(), is_numbered(&header));
            if let Header::Bye(why) = header {
                assert!(!why.text().is_empty());
            }
        }
        Err(Malformed::Kind(kind)) => assert!(kind == bytes[4] && !(1..=8).contains(&kind)),
        Err(Malformed::TooLong(len)) => {
            let fields = Fields::of(bytes);
            assert!(len == fields.len || len == fields.arg as u32);
            assert!(matches!(fields.kind, 5..=8) || len > bounds.message.min(bounds.rcall));
        }
        Err(Malformed::Field) => {}
    }
}

/// A header is sent.
fn sent(header: Header, numbers: Numbers, bounds: Bounds) {
    let right = header.payload_len() <= bound(&header, bounds) && makes_sense(&header, bounds);
    let bytes = header.encode(numbers);
    assert_eq!(numbers_of(&bytes), numbers);
    let parsed = Header::parse(&bytes, bounds);
    assert_eq!(parsed.ok(), right.then_some(header), "{parsed:?}");
}

pub(crate) fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let bounds = any_bounds(&mut script);
    if script.bit() {
        let len = script.number() as u32;
        let header = any_header(&mut script, len);
        sent(header, any_numbers(&mut script), bounds);
    } else {
        received(&script.array(), bounds);
    }
}
