// SPDX-License-Identifier: GPL-2.0

//! Frames: what goes over an established connection.
//!
//! A frame is a [`Header`] of [`HEADER_LEN`] bytes, little endian, and a payload:
//!
//! ```text
//!  0       4    5     6        8         16        24        32    36    40
//!  +-------+----+-----+--------+---------+---------+---------+-----+-----+---------
//!  | len   |kind|flags|reserved| seq     | ack     | id      | tag | arg | payload
//!  +-------+----+-----+--------+---------+---------+---------+-----+-----+---------
//! ```
//!
//! | kind       | id             | tag                  | arg            | payload   |
//! |------------|----------------|----------------------|----------------|-----------|
//! | `Message`  | 0              | the message's tag    | 0              | message   |
//! | `Call`     | 0              | function             | 0              | arguments |
//! | `CallSync` | call           | function             | room for reply | arguments |
//! | `Reply`    | call           | length needed        | status         | reply     |
//! | `Credit`   | total granted  | lane                 | 0              | none      |
//! | `Ping`     | 0              | answer wanted        | 0              | none      |
//! | `Bye`      | 0              | why ([`Bye`])        | 0              | none      |
//! | `Open`     | 0              | 0                    | 0              | none      |
//!
//! `flags` of a reply is its [`Outcome`]; otherwise it is 0. `seq` is the number of a frame that is
//! delivered exactly once, across connections: a message, a call or a reply; 0 for the others. `ack` is
//! the number of the last such frame that has been delivered here (`Documentation/protocol.md`).
//!
//! Everything about one frame is checked here, once; behind it, types are trusted. Pure.

use kernel::prelude::*;
use zerocopy::little_endian::{
    I32,
    U16,
    U32,
    U64, //
};
use zerocopy_derive::{
    Immutable,
    KnownLayout,
    Unaligned, //
};

/// Length of a header on the wire.
pub(crate) const HEADER_LEN: usize = 40;

/// A header on the wire.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Wire {
    len: U32,
    kind: u8,
    flags: u8,
    reserved: U16,
    seq: U64,
    ack: U64,
    id: U64,
    tag: U32,
    arg: I32,
}

const _: () = assert!(size_of::<Wire>() == HEADER_LEN);

/// What became of a synchronous call, apart from what its handler says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// The handler ran; its status is in the reply.
    Ran = 0,
    /// There is no such handler.
    NoHandler = 1,
    /// The handler takes no arguments of this length.
    ArgsTooLong = 2,
    /// The handler ran, but its reply has no room at the caller.
    ReplyTooLong = 3,
    /// There was no memory to run it.
    NoMemory = 4,
    /// The node is stopping.
    Stopping = 5,
}

impl Outcome {
    fn from_wire(value: u8) -> Option<Self> {
        Some(match value {
            0 => Outcome::Ran,
            1 => Outcome::NoHandler,
            2 => Outcome::ArgsTooLong,
            3 => Outcome::ReplyTooLong,
            4 => Outcome::NoMemory,
            5 => Outcome::Stopping,
            _ => return None,
        })
    }
}

/// Why a node says good-bye.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Bye {
    /// It is being unloaded.
    Stopping = 0,
    /// Its administrator has taken this peer down.
    AdminDown = 1,
    /// Its administrator wants a new connection.
    Reconnect = 2,
    /// It has another connection to this peer, which replaces this one.
    Replaced = 3,
    /// It could not make sense of what it was sent.
    Protocol = 4,
}

impl Bye {
    fn from_wire(value: u32) -> Option<Self> {
        Some(match value {
            0 => Bye::Stopping,
            1 => Bye::AdminDown,
            2 => Bye::Reconnect,
            3 => Bye::Replaced,
            4 => Bye::Protocol,
            _ => return None,
        })
    }

    /// For the log: "the peer ...".
    pub(crate) fn text(self) -> &'static str {
        match self {
            Bye::Stopping => "is stopping",
            Bye::AdminDown => "has taken this node down by its administrator",
            Bye::Reconnect => "reconnects by its administrator",
            Bye::Replaced => "has a newer connection",
            Bye::Protocol => "could not make sense of a frame",
        }
    }
}

/// What a frame says, without its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Header {
    /// A message with its tag.
    Message {
        /// What receivers ask for.
        tag: u32,
        /// Payload length.
        len: u32,
    },
    /// An asynchronous call.
    Call {
        /// The function.
        func: u32,
        /// Payload length.
        len: u32,
    },
    /// A synchronous call.
    CallSync {
        /// Chosen by the caller, returned with the reply.
        id: u64,
        /// The function.
        func: u32,
        /// Room for the reply at the caller.
        reply_max: u32,
        /// Payload length.
        len: u32,
    },
    /// The reply to a synchronous call.
    Reply {
        /// The call's.
        id: u64,
        /// What became of the call.
        outcome: Outcome,
        /// What the handler returned.
        status: i32,
        /// The length of the reply, also where it was too long to be sent.
        needed: u32,
        /// Payload length.
        len: u32,
    },
    /// More credit.
    Credit {
        /// For what.
        lane: super::credit::Lane,
        /// The new total.
        limit: u64,
    },
    /// A sign of life.
    Ping {
        /// Whether the other side is to acknowledge at once what it has.
        answer: bool,
    },
    /// The last frame.
    Bye(Bye),
    /// The side that connects is asked for the bulk channel.
    Open,
}

/// What is wrong with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Malformed {
    /// No such kind of frame.
    Kind(u8),
    /// A field that must be zero is not, or has a value that means nothing.
    Field,
    /// Longer than this node accepts.
    TooLong(u32),
}

/// What a node accepts; both sides told each other in the handshake.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// Longest message.
    pub(crate) message: u32,
    /// Longest arguments and longest reply.
    pub(crate) rcall: u32,
}

impl Header {
    const MESSAGE: u8 = 1;
    const CALL: u8 = 2;
    const CALL_SYNC: u8 = 3;
    const REPLY: u8 = 4;
    const CREDIT: u8 = 5;
    const PING: u8 = 6;
    const BYE: u8 = 7;
    const OPEN: u8 = 8;

    /// The length of the payload that follows.
    pub(crate) fn payload_len(&self) -> u32 {
        match *self {
            Header::Message { len, .. }
            | Header::Call { len, .. }
            | Header::CallSync { len, .. }
            | Header::Reply { len, .. } => len,
            Header::Credit { .. } | Header::Ping { .. } | Header::Bye(_) | Header::Open => 0,
        }
    }

    /// Reads a header, and checks all that can be checked without knowing the connection.
    pub(crate) fn parse(bytes: &[u8; HEADER_LEN], bounds: Bounds) -> Result<Self, Malformed> {
        let wire: Wire = zerocopy::transmute!(*bytes);
        let (id, tag, arg, len) = (
            wire.id.get(),
            wire.tag.get(),
            wire.arg.get(),
            wire.len.get(),
        );
        let header = match wire.kind {
            Self::MESSAGE => Header::Message { tag, len },
            Self::CALL => Header::Call { func: tag, len },
            Self::CALL_SYNC => Header::CallSync {
                id,
                func: tag,
                reply_max: arg as u32,
                len,
            },
            Self::REPLY => Header::Reply {
                id,
                outcome: Outcome::from_wire(wire.flags).ok_or(Malformed::Field)?,
                status: arg,
                needed: tag,
                len,
            },
            Self::CREDIT => Header::Credit {
                lane: super::credit::Lane::from_wire(tag).ok_or(Malformed::Field)?,
                limit: id,
            },
            Self::PING => Header::Ping {
                answer: match tag {
                    0 => false,
                    1 => true,
                    _ => return Err(Malformed::Field),
                },
            },
            Self::BYE => Header::Bye(Bye::from_wire(tag).ok_or(Malformed::Field)?),
            Self::OPEN => Header::Open,
            kind => return Err(Malformed::Kind(kind)),
        };
        header.check_len(len, bounds)?;
        header.check_reply()?;
        // What the header does not express must be as it would be sent.
        let again = header.to_wire(Numbers {
            seq: wire.seq.get(),
            ack: wire.ack.get(),
        });
        let (again, bytes): ([u64; HEADER_LEN / 8], [u64; HEADER_LEN / 8]) =
            (zerocopy::transmute!(again), zerocopy::transmute!(*bytes));
        let differing = again.iter().zip(&bytes).fold(0, |d, (a, b)| d | (a ^ b));
        if differing != 0 {
            return Err(Malformed::Field);
        }
        Ok(header)
    }

    /// Only of a reply that was not sent is the length another than what there is.
    fn check_reply(&self) -> Result<(), Malformed> {
        match *self {
            Header::Reply {
                outcome,
                needed,
                len,
                ..
            } if outcome != Outcome::ReplyTooLong && needed != len => Err(Malformed::Field),
            _ => Ok(()),
        }
    }

    fn check_len(&self, len: u32, bounds: Bounds) -> Result<(), Malformed> {
        let max = match *self {
            Header::Message { .. } => bounds.message,
            Header::Call { .. } | Header::Reply { .. } => bounds.rcall,
            Header::CallSync { reply_max, .. } => {
                if reply_max > bounds.rcall {
                    return Err(Malformed::TooLong(reply_max));
                }
                bounds.rcall
            }
            Header::Credit { .. } | Header::Ping { .. } | Header::Bye(_) | Header::Open => 0,
        };
        if len > max {
            return Err(Malformed::TooLong(len));
        }
        Ok(())
    }

    fn to_wire(self, numbers: Numbers) -> Wire {
        let (kind, flags, id, tag, arg) = match self {
            Header::Message { tag, .. } => (Self::MESSAGE, 0, 0, tag, 0),
            Header::Call { func, .. } => (Self::CALL, 0, 0, func, 0),
            Header::CallSync {
                id,
                func,
                reply_max,
                ..
            } => (Self::CALL_SYNC, 0, id, func, reply_max as i32),
            Header::Reply {
                id,
                outcome,
                status,
                needed,
                ..
            } => (Self::REPLY, outcome as u8, id, needed, status),
            Header::Credit { lane, limit } => (Self::CREDIT, 0, limit, lane as u32, 0),
            Header::Ping { answer } => (Self::PING, 0, 0, answer.into(), 0),
            Header::Bye(why) => (Self::BYE, 0, 0, why as u32, 0),
            Header::Open => (Self::OPEN, 0, 0, 0, 0),
        };
        Wire {
            len: self.payload_len().into(),
            kind,
            flags,
            reserved: 0.into(),
            seq: numbers.seq.into(),
            ack: numbers.ack.into(),
            id: id.into(),
            tag: tag.into(),
            arg: arg.into(),
        }
    }

    /// The header as it goes over the wire.
    pub(crate) fn encode(self, numbers: Numbers) -> [u8; HEADER_LEN] {
        zerocopy::transmute!(self.to_wire(numbers))
    }

    /// Whether it is a call, which may take long to handle.
    pub(crate) fn is_call(&self) -> bool {
        matches!(self, Header::Call { .. } | Header::CallSync { .. })
    }

    /// Whether it is a message.
    pub(crate) fn is_message(&self) -> bool {
        matches!(self, Header::Message { .. })
    }

    /// Whether it is delivered exactly once, across connections, and so has a number.
    pub(crate) fn is_sequenced(&self) -> bool {
        match self {
            Header::Message { .. }
            | Header::Call { .. }
            | Header::CallSync { .. }
            | Header::Reply { .. } => true,
            Header::Credit { .. } | Header::Ping { .. } | Header::Bye(_) | Header::Open => false,
        }
    }
}

/// What a frame says of where its session stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Numbers {
    /// Its own number, 0 for a frame that is not sequenced.
    pub(crate) seq: u64,
    /// The number of the last frame that its sender has delivered.
    pub(crate) ack: u64,
}

impl Numbers {
    /// Those of a frame with this header, whose bytes have been parsed.
    fn parse(bytes: &[u8; HEADER_LEN], header: &Header) -> Result<Self, Malformed> {
        let wire: Wire = zerocopy::transmute!(*bytes);
        let seq = wire.seq.get();
        if header.is_sequenced() == (seq == 0) {
            return Err(Malformed::Field);
        }
        Ok(Self {
            seq,
            ack: wire.ack.get(),
        })
    }
}

/// A frame that has come in whole.
pub(crate) struct Frame {
    /// What it says.
    pub(crate) header: Header,
    /// Where its session stands.
    pub(crate) numbers: Numbers,
    /// Its payload, of [`Header::payload_len`] bytes.
    pub(crate) payload: KVVec<u8>,
}

/// Why the next frame cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// The connection is of no more use.
    Malformed(Malformed),
    /// There is no memory for the payload now. Nothing is lost: try again later.
    NoMemory,
}

/// Puts frames together from a stream of bytes.
///
/// The bytes are read where [`Assembler::space`] says: into a small stage, from which many small
/// frames are taken at once, or, when most of a long payload is missing, straight into that. Either
/// has memory for what is still to come, which nobody writes before. Behind a long payload no more than
/// a header is read into the stage, for often another one follows.
///
/// # Invariants
///
/// `start <= stage.len() <= STAGE`, and what is before `start` has been taken; `payload.len() <=
/// header.payload_len()` of `current`. Both vectors have memory for the larger number.
pub(crate) struct Assembler {
    stage: KVVec<u8>,
    start: usize,
    current: Option<Partial>,
    /// The last frame was long, so the next one may be, too.
    long: bool,
}

struct Partial {
    header: Header,
    numbers: Numbers,
    payload: KVVec<u8>,
}

impl Partial {
    fn missing(&self) -> usize {
        (self.header.payload_len() as usize).saturating_sub(self.payload.len())
    }
}

/// Where the bytes go that come next.
pub(crate) struct Space<'a> {
    /// What they are to be appended to.
    pub(crate) to: &'a mut KVVec<u8>,
    /// How many there may be. There is memory for so many.
    pub(crate) most: usize,
}

impl Assembler {
    /// Size of the stage: what is read at once while frames are small.
    pub(crate) const STAGE: usize = 8192;

    /// A payload of which as much is missing is read straight to its place, bytes.
    const STRAIGHT: usize = Self::STAGE / 2;

    /// An assembler at the beginning of a stream.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            stage: KVVec::with_capacity(Self::STAGE, GFP_KERNEL)?,
            start: 0,
            current: None,
            long: false,
        })
    }

    /// Where to put the bytes that come next; never without room after [`Assembler::next`] has
    /// returned `None`.
    pub(crate) fn space(&mut self) -> Space<'_> {
        if self.start > 0 {
            let rest = self.start..self.stage.len();
            let n = rest.len();
            self.stage.copy_within(rest, 0);
            self.stage.truncate(n);
            self.start = 0;
        }
        let missing = self.current.as_ref().map_or(0, Partial::missing);
        match &mut self.current {
            Some(current) if self.stage.is_empty() && missing >= Self::STRAIGHT => Space {
                to: &mut current.payload,
                most: missing,
            },
            // What follows the header goes where it belongs, then, and not to the stage first.
            None if self.stage.is_empty() && self.long => Space {
                to: &mut self.stage,
                most: HEADER_LEN,
            },
            _ => Space {
                most: Self::STAGE.saturating_sub(self.stage.len()),
                to: &mut self.stage,
            },
        }
    }

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.stage.len() && self.current.is_none()
    }

    /// The first `N` bytes of the stream, once they are there: the handshake's.
    pub(crate) fn take_exact<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = *self.stage[self.start..].first_chunk::<N>()?;
        self.start += N;
        Some(bytes)
    }

    /// The header of the next frame, once it is there. Nothing is done about the frame.
    pub(crate) fn header(&self, bounds: Bounds) -> Result<Option<(Header, Numbers)>, Malformed> {
        if let Some(current) = &self.current {
            return Ok(Some((current.header, current.numbers)));
        }
        let Some(bytes) = self.stage[self.start..].first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        parse(bytes, bounds).map(Some)
    }

    /// The next frame, if it is there whole and what it carries is few bytes. It stays there until
    /// [`Assembler::pass`]. Any other is for [`Assembler::next`], to which it makes no difference
    /// whether this was asked.
    pub(crate) fn peek(&self, bounds: Bounds) -> Option<(Header, Numbers, &[u8])> {
        if self.current.is_some() {
            return None;
        }
        let (bytes, rest) = self.stage[self.start..].split_first_chunk::<HEADER_LEN>()?;
        let (header, numbers) = parse(bytes, bounds).ok()?;
        let len = header.payload_len() as usize;
        if len > FEW {
            return None;
        }
        Some((header, numbers, rest.get(..len)?))
    }

    /// Takes the frame that [`Assembler::peek`] has shown, which carries so many bytes.
    pub(crate) fn pass(&mut self, len: usize) {
        self.start = (self.start + HEADER_LEN + len).min(self.stage.len());
        self.long = false;
    }

    /// The next frame, once it is there. `buffer` gives memory for a payload of so many bytes.
    pub(crate) fn next(
        &mut self,
        bounds: Bounds,
        buffer: impl FnOnce(usize) -> Result<KVVec<u8>>,
    ) -> Result<Option<Frame>, Stop> {
        if self.current.is_none() {
            let Some((header, numbers)) = self.header(bounds).map_err(Stop::Malformed)? else {
                return Ok(None);
            };
            let len = header.payload_len() as usize;
            let payload = buffer(len).map_err(|_| Stop::NoMemory)?;
            self.start += HEADER_LEN;
            self.current = Some(Partial {
                header,
                numbers,
                payload,
            });
        }
        if let Some(current) = &mut self.current {
            let staged = &self.stage[self.start..];
            let n = current.missing().min(staged.len());
            append(&mut current.payload, &staged[..n]).map_err(|_| Stop::NoMemory)?;
            self.start += n;
            if current.missing() > 0 {
                return Ok(None);
            }
            self.long = current.payload.len() >= Self::STRAIGHT;
        }
        Ok(self.current.take().map(|c| Frame {
            header: c.header,
            numbers: c.numbers,
            payload: c.payload,
        }))
    }
}

/// So many bytes are few: whoever keeps them does so in place, without memory of their own.
pub(crate) const FEW: usize = 128;

/// A payload that has come in, on its way to whoever keeps it.
pub(crate) enum Received<'a> {
    /// At most [`FEW`] bytes, to be copied.
    Few(&'a [u8]),
    /// Any number.
    Many(KVVec<u8>),
}

impl Received<'_> {
    /// The same bytes, with memory of their own.
    pub(crate) fn into_many(self) -> Result<KVVec<u8>> {
        match self {
            Received::Few(bytes) => copied(bytes),
            Received::Many(bytes) => Ok(bytes),
        }
    }
}

/// All that a header says.
pub(crate) fn parse(
    bytes: &[u8; HEADER_LEN],
    bounds: Bounds,
) -> Result<(Header, Numbers), Malformed> {
    let header = Header::parse(bytes, bounds)?;
    let numbers = Numbers::parse(bytes, &header)?;
    Ok((header, numbers))
}

/// A copy of some bytes.
pub(crate) fn copied(bytes: &[u8]) -> Result<KVVec<u8>> {
    let mut copy = KVVec::with_capacity(bytes.len(), GFP_KERNEL)?;
    append(&mut copy, bytes)?;
    Ok(copy)
}

/// Adds some bytes to others, for which there is memory.
fn append(to: &mut KVVec<u8>, bytes: &[u8]) -> Result {
    Ok(to.extend_from_slice(bytes, GFP_KERNEL)?)
}

#[cfg(KCCM_KUNIT)]
#[kunit_tests(kccm_frame)]
pub(crate) mod tests {
    use super::super::credit::Lane;
    use super::*;

    /// Numbers that are the same in every run (Marsaglia's xorshift64), for all suites of `conn`.
    pub(crate) struct Random(pub(crate) u64);

    impl Random {
        pub(crate) fn draw(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        pub(crate) fn below(&mut self, limit: usize) -> usize {
            (self.draw() >> 16) as usize % limit
        }

        pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
            from[self.below(from.len())]
        }

        pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
            bytes.fill_with(|| (self.draw() >> 16) as u8);
        }
    }

    pub(crate) const PING: Header = Header::Ping { answer: false };

    impl Header {
        /// The header of the first frame of a session.
        pub(crate) fn bytes(self) -> [u8; HEADER_LEN] {
            let seq = self.is_sequenced().into();
            self.encode(Numbers { seq, ack: 0 })
        }
    }

    const BOUNDS: Bounds = Bounds {
        message: 1000,
        rcall: 500,
    };

    const OUTCOMES: [Outcome; 6] = [
        Outcome::Ran,
        Outcome::NoHandler,
        Outcome::ArgsTooLong,
        Outcome::ReplyTooLong,
        Outcome::NoMemory,
        Outcome::Stopping,
    ];

    const BYES: [Bye; 5] = [
        Bye::Stopping,
        Bye::AdminDown,
        Bye::Reconnect,
        Bye::Replaced,
        Bye::Protocol,
    ];

    /// A header as the picture at the top of the file has it.
    #[derive(Clone, Copy)]
    struct Drawn {
        len: u32,
        kind: u8,
        flags: u8,
        reserved: u16,
        seq: u64,
        ack: u64,
        id: u64,
        tag: u32,
        arg: i32,
    }

    impl Drawn {
        /// A frame with nothing but its kind.
        const fn new(kind: u8) -> Self {
            Self {
                len: 0,
                kind,
                flags: 0,
                reserved: 0,
                seq: 0,
                ack: 0,
                id: 0,
                tag: 0,
                arg: 0,
            }
        }

        fn bytes(&self) -> [u8; HEADER_LEN] {
            let mut bytes = [0; HEADER_LEN];
            bytes[0..4].copy_from_slice(&self.len.to_le_bytes());
            bytes[4] = self.kind;
            bytes[5] = self.flags;
            bytes[6..8].copy_from_slice(&self.reserved.to_le_bytes());
            bytes[8..16].copy_from_slice(&self.seq.to_le_bytes());
            bytes[16..24].copy_from_slice(&self.ack.to_le_bytes());
            bytes[24..32].copy_from_slice(&self.id.to_le_bytes());
            bytes[32..36].copy_from_slice(&self.tag.to_le_bytes());
            bytes[36..40].copy_from_slice(&self.arg.to_le_bytes());
            bytes
        }

        fn parse(&self) -> Result<Header, Malformed> {
            Header::parse(&self.bytes(), BOUNDS)
        }
    }

    /// A frame of every kind, with a value of its own in every field, and how it is drawn.
    const KINDS: [(Header, Drawn); 8] = [
        (
            Header::Message {
                tag: 0x2122_2324,
                len: 0x0102,
            },
            Drawn {
                len: 0x0102,
                tag: 0x2122_2324,
                ..Drawn::new(1)
            },
        ),
        (
            Header::Call {
                func: 0x2122_2324,
                len: 0x0102,
            },
            Drawn {
                len: 0x0102,
                tag: 0x2122_2324,
                ..Drawn::new(2)
            },
        ),
        (
            Header::CallSync {
                id: 0x1112_1314_1516_1718,
                func: 0x2122_2324,
                reply_max: 0x0132,
                len: 0x0102,
            },
            Drawn {
                len: 0x0102,
                id: 0x1112_1314_1516_1718,
                tag: 0x2122_2324,
                arg: 0x0132,
                ..Drawn::new(3)
            },
        ),
        (
            Header::Reply {
                id: 0x1112_1314_1516_1718,
                outcome: Outcome::ReplyTooLong,
                status: -0x3132_3334,
                needed: 0x2122_2324,
                len: 0x0102,
            },
            Drawn {
                len: 0x0102,
                flags: 3,
                id: 0x1112_1314_1516_1718,
                tag: 0x2122_2324,
                arg: -0x3132_3334,
                ..Drawn::new(4)
            },
        ),
        (
            Header::Credit {
                lane: Lane::Calls,
                limit: 0x1112_1314_1516_1718,
            },
            Drawn {
                id: 0x1112_1314_1516_1718,
                tag: 1,
                ..Drawn::new(5)
            },
        ),
        (
            Header::Ping { answer: true },
            Drawn {
                tag: 1,
                ..Drawn::new(6)
            },
        ),
        (
            Header::Bye(Bye::Replaced),
            Drawn {
                tag: 3,
                ..Drawn::new(7)
            },
        ),
        (Header::Open, Drawn::new(8)),
    ];

    /// Calls `f` for headers of every kind: with everything that is enumerated, and with the ends of
    /// what is a number.
    fn for_each_header(mut f: impl FnMut(Header)) {
        const IDS: [u64; 4] = [0, 1, 1 << 32, u64::MAX];
        const TAGS: [u32; 5] = [0, 1, 1 << 31, u32::MAX - 1, u32::MAX];
        const STATUS: [i32; 5] = [0, 1, -1, i32::MIN, i32::MAX];
        for lane in Lane::ALL {
            for limit in IDS {
                f(Header::Credit { lane, limit });
            }
        }
        for answer in [false, true] {
            f(Header::Ping { answer });
        }
        for why in BYES {
            f(Header::Bye(why));
        }
        f(Header::Open);
        for tag in TAGS {
            for len in [0, 1, BOUNDS.message - 1, BOUNDS.message] {
                f(Header::Message { tag, len });
            }
            for len in [0, 1, BOUNDS.rcall - 1, BOUNDS.rcall] {
                f(Header::Call { func: tag, len });
                for id in IDS {
                    for reply_max in [0, 1, BOUNDS.rcall - 1, BOUNDS.rcall] {
                        f(Header::CallSync {
                            id,
                            func: tag,
                            reply_max,
                            len,
                        });
                    }
                    for outcome in OUTCOMES {
                        for status in STATUS {
                            f(Header::Reply {
                                id,
                                outcome,
                                status,
                                needed: match outcome {
                                    Outcome::ReplyTooLong => tag,
                                    _ => len,
                                },
                                len,
                            });
                        }
                    }
                }
            }
        }
    }

    // ---- Headers.

    #[test]
    fn header_is_as_drawn() {
        for (header, drawn) in KINDS {
            let numbers = Numbers {
                seq: 0x4142_4344_4546_4748,
                ack: 0x5152_5354_5556_5758,
            };
            let drawn = Drawn {
                seq: numbers.seq,
                ack: numbers.ack,
                ..drawn
            };
            assert_eq!(header.encode(numbers), drawn.bytes());
            assert_eq!(drawn.parse(), Ok(header));
            assert_eq!(header.payload_len(), drawn.len);
        }
    }

    #[test]
    fn every_header_comes_back() {
        let (mut count, mut wrong) = (0, 0);
        for_each_header(|header| {
            count += 1;
            if Header::parse(&header.bytes(), BOUNDS) != Ok(header) {
                pr_err!("{header:?}\n");
                wrong += 1;
            }
        });
        assert_eq!(count, 8 + 2 + 5 + 1 + 5 * (4 + 4 * (1 + 4 * (4 + 30))));
        assert_eq!(wrong, 0);
    }

    /// Who reads a reply of the length that it is said to have finds that much.
    #[test]
    fn length_of_a_reply_is_what_it_says() {
        for outcome in OUTCOMES {
            for (needed, len) in [(0, 1), (1, 0), (u32::MAX, 0), (3, 2)] {
                let header = Header::Reply {
                    id: 1,
                    outcome,
                    status: -1,
                    needed,
                    len,
                };
                let expected = match outcome {
                    Outcome::ReplyTooLong => Ok(header),
                    _ => Err(Malformed::Field),
                };
                assert_eq!(Header::parse(&header.bytes(), BOUNDS), expected);
            }
        }
    }

    #[test]
    fn length_is_limited_by_kind() {
        use Malformed::TooLong;
        // (kind, longest)
        let limits = [
            (1, BOUNDS.message),
            (2, BOUNDS.rcall),
            (3, BOUNDS.rcall),
            (4, BOUNDS.rcall),
            (5, 0),
            (6, 0),
            (7, 0),
            (8, 0),
        ];
        for (kind, max) in limits {
            let with = |len| Drawn {
                len,
                tag: if kind == 4 { len } else { 0 },
                ..Drawn::new(kind)
            };
            for len in [0, 1, max.saturating_sub(1), max] {
                if len <= max {
                    assert_eq!(with(len).parse().map(|h| h.payload_len()), Ok(len));
                }
            }
            for len in [max + 1, max + 2, 1 << 31, u32::MAX] {
                assert_eq!(with(len).parse(), Err(TooLong(len)));
            }
        }
        // Each bound is one's own, and it may be anything.
        for max in [0, 1, 1 << 30, u32::MAX - 1] {
            let message = Bounds {
                message: max,
                rcall: 0,
            };
            let rcall = Bounds {
                message: 0,
                rcall: max,
            };
            for (kind, bounds) in [(1, message), (2, rcall), (3, rcall), (4, rcall)] {
                let parse = |len| {
                    let drawn = Drawn {
                        len,
                        tag: if kind == 4 { len } else { 0 },
                        ..Drawn::new(kind)
                    };
                    Header::parse(&drawn.bytes(), bounds)
                };
                assert!(parse(max).is_ok());
                assert_eq!(parse(max + 1), Err(TooLong(max + 1)));
            }
        }
    }

    #[test]
    fn room_for_a_reply_is_limited() {
        let with = |reply_max: u32| {
            let drawn = Drawn {
                arg: reply_max as i32,
                ..Drawn::new(3)
            };
            drawn.parse()
        };
        for reply_max in [0, 1, BOUNDS.rcall - 1, BOUNDS.rcall] {
            let call = Header::CallSync {
                id: 0,
                func: 0,
                reply_max,
                len: 0,
            };
            assert_eq!(with(reply_max), Ok(call));
        }
        for reply_max in [BOUNDS.rcall + 1, BOUNDS.rcall + 2, 1 << 31, u32::MAX] {
            assert_eq!(with(reply_max), Err(Malformed::TooLong(reply_max)));
        }
    }

    #[test]
    fn unknown_kind_is_refused() {
        for kind in (0..=u8::MAX).filter(|kind| !(1..=8).contains(kind)) {
            assert_eq!(Drawn::new(kind).parse(), Err(Malformed::Kind(kind)));
            // Whatever else it says.
            let mut bytes = [0xff; HEADER_LEN];
            bytes[4] = kind;
            let parsed = Header::parse(&bytes, BOUNDS);
            assert_eq!(parsed, Err(Malformed::Kind(kind)));
        }
    }

    #[test]
    fn unknown_value_is_refused() {
        for (value, outcome) in (0..).zip(OUTCOMES) {
            assert_eq!(outcome as u8, value);
            assert_eq!(Outcome::from_wire(value), Some(outcome));
        }
        for flags in OUTCOMES.len() as u8..=u8::MAX {
            let reply = Drawn {
                flags,
                ..Drawn::new(4)
            };
            assert_eq!(reply.parse(), Err(Malformed::Field));
        }
        for (value, why) in (0..).zip(BYES) {
            assert_eq!(why as u32, value);
            assert_eq!(Bye::from_wire(value), Some(why));
        }
        // (kind, how many values its tag can have)
        for (kind, values) in [(5, Lane::ALL.len()), (6, 2), (7, BYES.len()), (8, 1)] {
            for tag in [values as u32, 1 << 8, 1 << 16, 1 << 24, u32::MAX] {
                let drawn = Drawn {
                    tag,
                    ..Drawn::new(kind)
                };
                assert_eq!(drawn.parse(), Err(Malformed::Field));
            }
        }
    }

    #[test]
    fn unused_field_is_zero() {
        // The bytes that a frame of each kind has no use for, by the table at the top of the file.
        let unused: [&[(usize, usize)]; 8] = [
            &[(5, 8), (24, 32), (36, 40)],
            &[(5, 8), (24, 32), (36, 40)],
            &[(5, 8)],
            &[(6, 8)],
            &[(5, 8), (36, 40)],
            &[(5, 8), (24, 32), (36, 40)],
            &[(5, 8), (24, 32), (36, 40)],
            &[(5, 8), (24, 40)],
        ];
        for ((header, _), ranges) in KINDS.into_iter().zip(unused) {
            for byte in ranges.iter().flat_map(|(from, to)| *from..*to) {
                for bit in 0..8 {
                    let mut bytes = header.bytes();
                    bytes[byte] ^= 1 << bit;
                    let parsed = Header::parse(&bytes, BOUNDS);
                    assert_eq!(parsed, Err(Malformed::Field));
                }
            }
        }
    }

    /// What is delivered exactly once has a number, and nothing else has.
    #[test]
    fn numbers_come_back() {
        for ((header, _), sequenced) in KINDS.into_iter().zip([1, 1, 1, 1, 0, 0, 0, 0]) {
            assert_eq!(header.is_sequenced(), sequenced == 1);
            for (seq, ack) in [
                (0, 0),
                (1, 0),
                (0, 1),
                (u64::MAX, u64::MAX),
                (1 << 32, 1 << 31),
            ] {
                let numbers = Numbers { seq, ack };
                let bytes = header.encode(numbers);
                assert_eq!(Header::parse(&bytes, BOUNDS), Ok(header));
                let expected = match (sequenced, seq) {
                    (0, 0) | (1, 1..) => Ok(numbers),
                    _ => Err(Malformed::Field),
                };
                assert_eq!(Numbers::parse(&bytes, &header), expected);
            }
        }
    }

    #[test]
    fn frame_has_its_numbers() -> Result {
        let mut assembler = Assembler::new()?;
        let numbers = Numbers { seq: 5, ack: 77 };
        put(&mut assembler, &message(0).encode(numbers))?;
        let first = assembler.next(WIDE, buffer).map_err(|_| EIO)?;
        assert_eq!(first.map(|f| f.numbers), Some(numbers));
        let numbers = Numbers { seq: 0, ack: 77 };
        put(&mut assembler, &message(0).encode(numbers))?;
        let next = assembler.next(WIDE, buffer);
        assert!(next.is_err_and(|stop| stop == Stop::Malformed(Malformed::Field)));
        Ok(())
    }

    /// Whether bytes are refused, or are those of the header that they are taken for.
    fn refused_or_as_sent(bytes: &[u8; HEADER_LEN]) -> bool {
        let Ok(header) = Header::parse(bytes, BOUNDS) else {
            return true;
        };
        let mut sent = header.bytes();
        sent[8..24].copy_from_slice(&bytes[8..24]);
        sent == *bytes && header.payload_len() <= BOUNDS.message.max(BOUNDS.rcall)
    }

    #[test]
    fn flipped_bit_is_refused_or_says_so() {
        for (header, drawn) in KINDS {
            for bit in 0..8 * HEADER_LEN {
                let mut bytes = drawn.bytes();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(refused_or_as_sent(&bytes));
                // Only the sequence number and the acknowledgement make no difference.
                let ignored = (64..192).contains(&bit);
                let same = Header::parse(&bytes, BOUNDS) == Ok(header);
                assert_eq!(same, ignored);
            }
        }
    }

    #[test]
    fn garbage_is_refused_or_as_sent() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut taken = [0; 9];
        for _ in 0..20_000 {
            let mut bytes = [0; HEADER_LEN];
            random.fill(&mut bytes);
            // Plain noise would hardly ever be accepted: each field is plausible three times of four.
            let mut plausible = || random.below(4) != 0;
            if plausible() {
                bytes[0] %= 2;
                bytes[1] = 0;
                bytes[2..4].fill(0);
            }
            if plausible() {
                bytes[4] %= 9;
            }
            if plausible() {
                bytes[5] %= 2;
            }
            for range in [6..8, 24..32, 36..40] {
                if plausible() {
                    bytes[range].fill(0);
                }
            }
            if plausible() {
                bytes[32] %= 8;
                bytes[33..36].fill(0);
            }
            assert!(refused_or_as_sent(&bytes));
            if Header::parse(&bytes, BOUNDS).is_ok() {
                taken[usize::from(bytes[4])] += 1;
            }
        }
        // It has been more than noise.
        assert_eq!(taken[0], 0);
        assert!(taken[1..].iter().all(|n| *n > 10));
    }

    #[test]
    fn bye_tells_why() {
        let texts = [
            "is stopping",
            "has taken this node down by its administrator",
            "reconnects by its administrator",
            "has a newer connection",
            "could not make sense of a frame",
        ];
        assert_eq!(BYES.map(Bye::text), texts);
    }

    // ---- The assembler.

    /// Memory for their payloads.
    fn buffer(len: usize) -> Result<KVVec<u8>> {
        Ok(KVVec::with_capacity(len, GFP_KERNEL)?)
    }

    /// What the assemblers of these tests accept.
    const WIDE: Bounds = Bounds {
        message: 1 << 20,
        rcall: 1 << 20,
    };

    /// Size of the stage, and the least that is read past it.
    const STAGE: usize = Assembler::STAGE;
    const STRAIGHT: usize = Assembler::STRAIGHT;

    const fn message(len: usize) -> Header {
        Header::Message {
            tag: 7,
            len: len as u32,
        }
    }

    /// A stream of frames. Their payloads are such that bytes in the wrong place are seen.
    struct Stream {
        bytes: KVVec<u8>,
        /// The frames, each with where it ends.
        frames: KVec<(Header, usize)>,
    }

    impl Stream {
        fn new(headers: impl IntoIterator<Item = Header>) -> Result<Self> {
            let (mut bytes, mut frames) = (KVVec::new(), KVec::new());
            for header in headers {
                bytes.extend_from_slice(&header.bytes(), GFP_KERNEL)?;
                for _ in 0..header.payload_len() {
                    let place = bytes.len();
                    bytes.push((place ^ (place >> 8)) as u8, GFP_KERNEL)?;
                }
                frames.push((header, bytes.len()), GFP_KERNEL)?;
            }
            Ok(Self { bytes, frames })
        }
    }

    /// An assembler that is fed with a stream.
    struct Reader<'a> {
        stream: &'a Stream,
        assembler: Assembler,
        /// How many bytes it has been fed, and how many frames have come out.
        fed: usize,
        taken: usize,
    }

    impl<'a> Reader<'a> {
        fn new(stream: &'a Stream) -> Result<Self> {
            Ok(Self {
                stream,
                assembler: Assembler::new()?,
                fed: 0,
                taken: 0,
            })
        }

        /// Feeds the next `n` bytes, as many at once as there is space for. Whatever is complete
        /// then must come out, and nothing else.
        fn feed(&mut self, n: usize) -> Result {
            let until = (self.fed + n).min(self.stream.bytes.len());
            while self.fed < until {
                let space = self.assembler.space();
                let n = space.most.min(until - self.fed);
                if n == 0 {
                    pr_err!("no space at {}\n", self.fed);
                    return Err(ENOSPC);
                }
                append(space.to, &self.stream.bytes[self.fed..][..n])?;
                self.fed += n;
                self.take()?;
            }
            Ok(())
        }

        /// Takes the next frame, in the one way or in the other.
        fn next(&mut self) -> Result<Option<Frame>> {
            if let Some((header, numbers, few)) = self.assembler.peek(WIDE) {
                let payload = copied(few)?;
                if (self.fed + self.taken) % 2 == 0 {
                    self.assembler.pass(payload.len());
                    return Ok(Some(Frame {
                        header,
                        numbers,
                        payload,
                    }));
                }
            }
            self.assembler.next(WIDE, buffer).map_err(|_| EPROTO)
        }

        fn take(&mut self) -> Result {
            while let Some(frame) = self.next()? {
                let (header, end) = *self.stream.frames.get(self.taken).ok_or(ERANGE)?;
                let start = end - header.payload_len() as usize;
                if frame.header != header || frame.payload[..] != self.stream.bytes[start..end] {
                    pr_err!("frame {} is not what was sent\n", self.taken);
                    return Err(EILSEQ);
                }
                if end > self.fed {
                    pr_err!("frame {} came too early\n", self.taken);
                    return Err(EILSEQ);
                }
                self.taken += 1;
            }
            match self.stream.frames.get(self.taken) {
                Some((_, end)) if *end <= self.fed => {
                    pr_err!("frame {} did not come\n", self.taken);
                    Err(EILSEQ)
                }
                _ => Ok(()),
            }
        }

        /// Feeds what is left. The stream begins anew then, for the same assembler.
        fn finish(&mut self) -> Result {
            self.feed(self.stream.bytes.len())?;
            if self.taken != self.stream.frames.len() {
                return Err(ENODATA);
            }
            (self.fed, self.taken) = (0, 0);
            Ok(())
        }

        /// Feeds all of it, so many bytes at a time.
        fn feed_all(&mut self, n: usize) -> Result {
            while self.fed < self.stream.bytes.len() {
                self.feed(n)?;
            }
            self.finish()
        }
    }

    /// Some frames of all kinds, with payloads, without, and in pairs of the same.
    const SOME: [Header; 11] = [
        message(5),
        PING,
        message(0),
        message(0),
        KINDS[1].0,
        KINDS[2].0,
        KINDS[3].0,
        KINDS[4].0,
        message(1),
        KINDS[6].0,
        KINDS[7].0,
    ];

    #[test]
    fn truncated_frame_does_not_come() -> Result {
        for (header, _) in KINDS {
            let stream = Stream::new([header])?;
            for cut in 0..stream.bytes.len() {
                let mut reader = Reader::new(&stream)?;
                reader.feed(cut)?;
                // Nor does it however often it is asked for.
                assert!(reader
                    .assembler
                    .next(WIDE, buffer)
                    .is_ok_and(|f| f.is_none()));
                assert_eq!(reader.taken, 0);
                reader.finish()?;
            }
        }
        Ok(())
    }

    #[test]
    fn frames_in_one_read() -> Result {
        let stream = Stream::new(SOME)?;
        assert!(stream.bytes.len() < STAGE);
        let mut assembler = Assembler::new()?;
        put(&mut assembler, &stream.bytes)?;
        for header in SOME {
            let next = assembler.next(WIDE, buffer).map_err(|_| EPROTO)?;
            assert!(next.is_some_and(|frame| frame.header == header));
        }
        assert!(assembler.next(WIDE, buffer).is_ok_and(|f| f.is_none()));
        Ok(())
    }

    #[test]
    fn frames_in_reads_of_every_size() -> Result {
        let stream = Stream::new(SOME)?;
        let mut reader = Reader::new(&stream)?;
        for n in 1..=stream.bytes.len() {
            reader.feed_all(n)?;
        }
        Ok(())
    }

    #[test]
    fn frames_cut_anywhere() -> Result {
        let stream = Stream::new(SOME)?;
        let mut reader = Reader::new(&stream)?;
        for cut in 0..=stream.bytes.len() {
            reader.feed(cut)?;
            reader.finish()?;
        }
        // And in every two places.
        let stream = Stream::new([message(3), PING])?;
        let mut reader = Reader::new(&stream)?;
        for first in 0..=stream.bytes.len() {
            for second in 0..=stream.bytes.len() - first {
                reader.feed(first)?;
                reader.feed(second)?;
                reader.finish()?;
            }
        }
        Ok(())
    }

    #[test]
    fn long_payload_is_read_straight() -> Result {
        for len in [STRAIGHT, STRAIGHT + 1, STAGE, STAGE + 1, 3 * STAGE + 17] {
            let stream = Stream::new([message(len), message(3)])?;
            let mut reader = Reader::new(&stream)?;
            reader.feed(HEADER_LEN)?;
            // There is space for what is missing and not a byte more, so that what comes behind it
            // stays in the link.
            for missing in [len, STRAIGHT + (len - STRAIGHT) / 2, STRAIGHT] {
                reader.feed(HEADER_LEN + len - missing - reader.fed)?;
                assert_eq!(reader.assembler.space().most, missing);
            }
            // The last part comes through the stage, with what is behind it.
            reader.feed(1)?;
            assert_eq!(reader.assembler.space().most, STAGE);
            reader.finish()?;
        }
        let stream = Stream::new([message(STRAIGHT - 1)])?;
        let mut reader = Reader::new(&stream)?;
        reader.feed(HEADER_LEN)?;
        assert_eq!(reader.assembler.space().most, STAGE);
        reader.finish()
    }

    #[test]
    fn behind_a_long_payload_a_header_is_read() -> Result {
        let headers = [message(STRAIGHT), message(3), message(STRAIGHT - 1), PING];
        let stream = Stream::new(headers)?;
        let mut reader = Reader::new(&stream)?;
        reader.feed(stream.frames[0].1)?;
        for (_, end) in &stream.frames[1..] {
            let expected = if reader.taken == 1 { HEADER_LEN } else { STAGE };
            assert_eq!(reader.assembler.space().most, expected);
            reader.feed(end - reader.fed)?;
        }
        assert_eq!(reader.taken, headers.len());
        Ok(())
    }

    #[test]
    fn payloads_around_the_size_of_the_stage() -> Result {
        let lens = [
            STRAIGHT - HEADER_LEN,
            STRAIGHT - 1,
            STRAIGHT,
            STRAIGHT + 1,
            STAGE - 2 * HEADER_LEN,
            STAGE - HEADER_LEN - 1,
            STAGE - HEADER_LEN,
            STAGE - HEADER_LEN + 1,
            STAGE - 1,
            STAGE,
            STAGE + 1,
            3 * STAGE + 17,
        ];
        for len in lens {
            let stream = Stream::new([message(len), PING, message(len), message(1)])?;
            let mut reader = Reader::new(&stream)?;
            for n in [
                1,
                39,
                40,
                41,
                STRAIGHT,
                STAGE - 1,
                STAGE,
                STAGE + 1,
                usize::MAX / 2,
            ] {
                reader.feed_all(n)?;
            }
        }
        Ok(())
    }

    #[test]
    fn stage_is_full_of_headers() -> Result {
        // They do not fill it evenly: the rest of each read is moved to the front.
        assert!(STAGE % HEADER_LEN != 0);
        let stream = Stream::new((0..1000).map(|_| PING))?;
        let mut reader = Reader::new(&stream)?;
        for n in [usize::MAX / 2, STAGE, STAGE - 1, 1000, HEADER_LEN + 1] {
            reader.feed_all(n)?;
        }
        Ok(())
    }

    #[test]
    fn random_frames_in_random_reads() -> Result {
        let mut random = Random(0xd1b5_4a32_d192_ed03);
        for _ in 0..10 {
            let mut headers = KVec::new();
            for _ in 0..100 {
                let most = random.pick(&[1, 50, 500, STAGE, 3 * STAGE]);
                let (len, (other, _)) = (random.below(most), random.pick(&KINDS));
                let header = random.pick(&[message(len), other]);
                headers.push(header, GFP_KERNEL)?;
            }
            let stream = Stream::new(headers)?;
            let mut reader = Reader::new(&stream)?;
            while reader.fed < stream.bytes.len() {
                let most = random.pick(&[2, 50, 500, STAGE, 3 * STAGE]);
                reader.feed(1 + random.below(most))?;
            }
            reader.finish()?;
        }
        Ok(())
    }

    /// Puts bytes into an assembler.
    fn put(assembler: &mut Assembler, bytes: &[u8]) -> Result {
        let space = assembler.space();
        assert!(bytes.len() <= space.most);
        append(space.to, bytes)
    }

    #[test]
    fn malformed_frame_is_the_end() -> Result {
        let cases = [
            (Drawn::new(0), Malformed::Kind(0)),
            (
                Drawn {
                    reserved: 1,
                    ..Drawn::new(6)
                },
                Malformed::Field,
            ),
            // Refused by its header alone: no memory is taken for what would follow.
            (
                Drawn {
                    len: BOUNDS.message + 1,
                    ..Drawn::new(1)
                },
                Malformed::TooLong(BOUNDS.message + 1),
            ),
        ];
        for (drawn, malformed) in cases {
            let mut assembler = Assembler::new()?;
            put(&mut assembler, &PING.bytes())?;
            put(&mut assembler, &drawn.bytes()[..HEADER_LEN - 1])?;
            let next = assembler.next(BOUNDS, buffer);
            assert!(next.is_ok_and(|f| f.is_some_and(|f| f.header == PING)));
            assert!(assembler.next(BOUNDS, buffer).is_ok_and(|f| f.is_none()));
            put(&mut assembler, &drawn.bytes()[HEADER_LEN - 1..])?;
            // A good frame behind it is of no more use.
            put(&mut assembler, &PING.bytes())?;
            for _ in 0..3 {
                let next = assembler.next(BOUNDS, buffer).err();
                assert_eq!(next, Some(Stop::Malformed(malformed)));
            }
        }
        Ok(())
    }

    #[test]
    fn greeting_comes_before_the_frames() -> Result {
        const GREETING: usize = 144;
        let stream = Stream::new(SOME)?;
        let greeting: [u8; GREETING] = core::array::from_fn(|i| i as u8);
        let mut bytes = KVec::new();
        bytes.extend_from_slice(&greeting, GFP_KERNEL)?;
        bytes.extend_from_slice(&stream.bytes, GFP_KERNEL)?;
        for cut in 0..=bytes.len() {
            let mut assembler = Assembler::new()?;
            put(&mut assembler, &bytes[..cut])?;
            let mut taken = assembler.take_exact::<GREETING>();
            assert_eq!(taken.is_some(), cut >= GREETING);
            put(&mut assembler, &bytes[cut..])?;
            if taken.is_none() {
                taken = assembler.take_exact();
            }
            assert!(taken == Some(greeting));
            for header in SOME {
                let next = assembler.next(WIDE, buffer).map_err(|_| EPROTO)?;
                assert!(next.is_some_and(|frame| frame.header == header));
            }
            assert!(assembler.next(WIDE, buffer).is_ok_and(|f| f.is_none()));
        }
        Ok(())
    }

    #[test]
    fn few_bytes_stay_until_they_are_passed() -> Result {
        for (len, shown) in [(0, true), (1, true), (FEW, true), (FEW + 1, false)] {
            let stream = Stream::new([message(len), PING])?;
            for cut in 0..stream.bytes.len() {
                let mut assembler = Assembler::new()?;
                put(&mut assembler, &stream.bytes[..cut])?;
                let whole = cut >= HEADER_LEN + len;
                for _ in 0..2 {
                    let peeked = assembler.peek(WIDE);
                    assert_eq!(peeked.is_some(), shown && whole);
                    if let Some((header, numbers, few)) = peeked {
                        assert_eq!((header, numbers.seq), (message(len), 1));
                        assert!(*few == stream.bytes[HEADER_LEN..][..len]);
                    }
                }
                if !whole || !shown {
                    // One that has begun to be taken is not shown again.
                    assert_eq!(
                        assembler.next(WIDE, buffer).is_ok_and(|f| f.is_some()),
                        whole
                    );
                    put(&mut assembler, &stream.bytes[cut..])?;
                    assert_eq!(
                        assembler.peek(WIDE).is_some(),
                        whole || cut < HEADER_LEN && shown
                    );
                    continue;
                }
                assembler.pass(len);
                put(&mut assembler, &stream.bytes[cut..])?;
                assert!(assembler
                    .peek(WIDE)
                    .is_some_and(|(header, ..)| header == PING));
                assembler.pass(0);
                assert!(assembler.is_empty() && assembler.peek(WIDE).is_none());
                assembler.pass(1);
                assert!(assembler.is_empty());
            }
        }
        let mut assembler = Assembler::new()?;
        put(&mut assembler, &[0; HEADER_LEN])?;
        assert!(assembler.peek(WIDE).is_none());
        Ok(())
    }

    #[test]
    fn there_is_memory_for_what_there_is_space_for() -> Result {
        let mut assembler = Assembler::new()?;
        let room = |space: &Space<'_>| space.to.capacity() - space.to.len();
        for header in [message(STAGE), message(STRAIGHT)] {
            for n in 0..HEADER_LEN {
                put(&mut assembler, &header.bytes()[n..n + 1])?;
                let space = assembler.space();
                assert_eq!(space.most, STAGE - n - 1);
                assert!(room(&space) >= space.most);
            }
            assert!(assembler.next(WIDE, buffer).is_ok_and(|f| f.is_none()));
            let mut missing = header.payload_len() as usize;
            while missing >= STRAIGHT {
                let space = assembler.space();
                assert_eq!(space.most, missing);
                assert!(room(&space) >= space.most);
                append(space.to, &[7])?;
                missing -= 1;
                assert!(assembler.next(WIDE, buffer).is_ok_and(|f| f.is_none()));
            }
            // More than was missing stays for the next frame.
            put(&mut assembler, &[7; STRAIGHT - 1])?;
            let next = assembler.next(WIDE, buffer).map_err(|_| EPROTO)?;
            let len = header.payload_len() as usize;
            assert!(next.is_some_and(|f| f.payload.len() == len && f.payload.capacity() == len));
            assert!(assembler.is_empty());
        }
        Ok(())
    }
}
