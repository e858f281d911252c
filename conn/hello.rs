// SPDX-License-Identifier: GPL-2.0

//! The handshake: who is there, and whether the two belong together.
//!
//! The node with the lower id connects (P10) and sends a `Hello`; the other answers with a `Welcome`
//! or a `Refusal`, and the connection is established or closed. Each is one [`Greeting`] of
//! [`GREETING_LEN`] bytes, little endian:
//!
//! ```text
//!  0       4         6      7        8      10     12        16
//!  +-------+---------+------+--------+------+------+---------+-----------------------+
//!  | magic | version | kind | reason | from | to   | dead_ms | incarnation of `from` |
//!  +-------+---------+------+--------+------+------+---------+-----------------------+
//!  24               32               40            44          48            56
//!  +----------------+----------------+-------------+-----------+-------------+-------------+
//!  | incarnation of | last sequence  | max_message | max_rcall | queue_bytes | rcall_bytes |
//!  | `to`, if known | number received|             |           |             |             |
//!  +----------------+----------------+-------------+-----------+-------------+-------------+
//!  64                 72                80                                                144
//!  +------------------+-----------------+-----------------------------------------------------+
//!  | granted messages | granted calls   | cluster name, zero-padded                           |
//!  +------------------+-----------------+-----------------------------------------------------+
//! ```
//!
//! Magic, version, kind and reason have their place in every version to come, and a greeting its
//! length, so that nodes of different versions can refuse each other with a reason.
//!
//! What either side reads is garbage until it has been checked; [`check_hello`] and
//! [`check_answer`] do all of it. Pure.

use super::frame::Bounds;
use crate::config::{
    ClusterName,
    NodeId,
    MAX_NODES, //
};
use core::net::IpAddr;
use kernel::fmt;
use kernel::prelude::*;
use zerocopy::little_endian::{
    U16,
    U32,
    U64, //
};
use zerocopy_derive::{
    Immutable,
    KnownLayout,
    Unaligned, //
};

/// Length of a greeting on the wire.
pub(crate) const GREETING_LEN: usize = 144;

/// "KCCM", as it stands on the wire.
const MAGIC: [u8; 4] = *b"KCCM";

/// The version of the protocol.
pub(crate) const VERSION: u16 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Wire {
    magic: [u8; 4],
    version: U16,
    kind: u8,
    reason: u8,
    from: U16,
    to: U16,
    dead_ms: U32,
    incarnation: U64,
    to_incarnation: U64,
    last_seq: U64,
    max_message: U32,
    max_rcall: U32,
    queue_bytes: U64,
    rcall_bytes: U64,
    granted: [U64; 2],
    cluster: [u8; ClusterName::MAX],
}

const _: () = assert!(size_of::<Wire>() == GREETING_LEN);

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const REFUSAL: u8 = 3;

/// Why a node will not talk to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refusal {
    /// It speaks another version.
    Version = 1,
    /// It belongs to another cluster.
    Cluster = 2,
    /// Its id is not among this node's peers, or it takes this node for another.
    UnknownId = 3,
    /// It has the higher id, so it should have waited.
    Direction = 4,
    /// Another incarnation of it is connected and alive.
    Duplicate = 5,
    /// It comes from an address that is not the one of that id.
    Address = 6,
    /// The administrator has taken it down.
    AdminDown = 7,
    /// The node is stopping.
    Stopping = 8,
    /// What it said makes no sense.
    Malformed = 9,
}

impl Refusal {
    fn from_wire(value: u8) -> Option<Self> {
        Some(match value {
            1 => Refusal::Version,
            2 => Refusal::Cluster,
            3 => Refusal::UnknownId,
            4 => Refusal::Direction,
            5 => Refusal::Duplicate,
            6 => Refusal::Address,
            7 => Refusal::AdminDown,
            8 => Refusal::Stopping,
            9 => Refusal::Malformed,
            _ => return None,
        })
    }

    /// The nearest errno, for `last_error`.
    pub(crate) fn errno(self) -> Error {
        match self {
            Refusal::Version => EPROTO,
            Refusal::Cluster | Refusal::UnknownId | Refusal::Direction | Refusal::Address => EPERM,
            Refusal::Duplicate => EBUSY,
            Refusal::AdminDown => EHOSTDOWN,
            Refusal::Stopping => ESHUTDOWN,
            Refusal::Malformed => EINVAL,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Refusal::Version => "wrong version",
            Refusal::Cluster => "wrong cluster",
            Refusal::UnknownId => "unknown id",
            Refusal::Direction => "wrong direction",
            Refusal::Duplicate => "duplicate",
            Refusal::Address => "wrong address",
            Refusal::AdminDown => "administratively down",
            Refusal::Stopping => "stopping",
            Refusal::Malformed => "malformed greeting",
        })
    }
}

/// What a node says of itself.
#[derive(Clone, Copy)]
pub(crate) struct Identity {
    /// Its id.
    pub(crate) id: NodeId,
    /// Its cluster.
    pub(crate) cluster: ClusterName,
    /// Which run of it this is.
    pub(crate) incarnation: u64,
    /// How long a silence it takes for death.
    pub(crate) dead_ms: u32,
    /// The longest frames it accepts.
    pub(crate) bounds: Bounds,
    /// Windows for messages and for calls to it.
    pub(crate) windows: [u64; 2],
}

/// What the handshake has told of a peer.
#[derive(Clone, Copy)]
pub(crate) struct Greeting {
    /// The peer.
    pub(crate) peer: Identity,
    /// How much of its windows is free now, where messages of an earlier connection are still kept.
    pub(crate) granted: [u64; 2],
}

/// What an answer to a `Hello` can be.
pub(crate) enum Answer {
    /// The peer accepts.
    Welcome(Greeting),
    /// The peer refuses.
    Refused(Refusal),
}

/// What goes into a greeting, beside what a node is.
#[derive(Default)]
struct To {
    id: NodeId,
    incarnation: u64,
    granted: [u64; 2],
}

fn encode(kind: u8, reason: u8, me: &Identity, to: To) -> Bytes {
    zerocopy::transmute!(Wire {
        magic: MAGIC,
        version: VERSION.into(),
        kind,
        reason,
        from: me.id.into(),
        to: to.id.into(),
        dead_ms: me.dead_ms.into(),
        incarnation: me.incarnation.into(),
        to_incarnation: to.incarnation.into(),
        last_seq: 0.into(),
        max_message: me.bounds.message.into(),
        max_rcall: me.bounds.rcall.into(),
        queue_bytes: me.windows[0].into(),
        rcall_bytes: me.windows[1].into(),
        granted: to.granted.map(U64::from),
        cluster: *me.cluster.wire(),
    })
}

/// A greeting on the wire.
pub(crate) type Bytes = [u8; GREETING_LEN];

/// The first words of the node that connects. `known`: the peer's last incarnation, or 0.
pub(crate) fn hello(me: &Identity, id: NodeId, known: u64, granted: [u64; 2]) -> Bytes {
    let to = To {
        id,
        incarnation: known,
        granted,
    };
    encode(HELLO, 0, me, to)
}

/// The answer to a good `Hello`.
pub(crate) fn welcome(me: &Identity, peer: &Identity, granted: [u64; 2]) -> Bytes {
    let to = To {
        id: peer.id,
        incarnation: peer.incarnation,
        granted,
    };
    encode(WELCOME, 0, me, to)
}

/// The answer to any other.
pub(crate) fn refuse(me: &Identity, reason: Refusal) -> Bytes {
    encode(REFUSAL, reason as u8, me, To::default())
}

/// The id that a greeting claims to come from; not to be believed.
pub(crate) fn claimed_id(bytes: &Bytes) -> NodeId {
    let wire: Wire = zerocopy::transmute!(*bytes);
    wire.from.get()
}

/// Why a `Hello` is not accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reject {
    /// It is not KCCM's: close without a word.
    Garbage,
    /// Answer with the reason. `from` is what the other claims to be.
    Refuse {
        /// The reason.
        reason: Refusal,
        /// The id it claims, or 0 where that could not be read.
        from: NodeId,
    },
}

/// What the accepting node knows of the peer that a `Hello` claims to come from.
pub(crate) struct Claimed {
    /// Where that peer lives.
    pub(crate) ip: IpAddr,
    /// Whether the administrator has taken it down.
    pub(crate) admin_down: bool,
    /// Its incarnation, if it is connected at present and has been heard of lately.
    pub(crate) alive: Option<u64>,
}

/// Judges a `Hello` that came in from `source`. `lookup` tells of the peer with an id, `None` if
/// there is none.
pub(crate) fn check_hello(
    bytes: &Bytes,
    me: &Identity,
    source: IpAddr,
    lookup: impl FnOnce(NodeId) -> Option<Claimed>,
) -> Result<Greeting, Reject> {
    let wire: Wire = zerocopy::transmute!(*bytes);
    if wire.magic != MAGIC {
        return Err(Reject::Garbage);
    }
    let from = wire.from.get();
    let refuse = |reason| Reject::Refuse { reason, from };
    if wire.version.get() != VERSION {
        return Err(Reject::Refuse {
            reason: Refusal::Version,
            from: 0,
        });
    }
    let greeting = read(&wire).filter(|_| wire.kind == HELLO && wire.reason == 0);
    let greeting = greeting.ok_or(refuse(Refusal::Malformed))?;
    let peer = &greeting.peer;
    if peer.cluster != me.cluster {
        return Err(refuse(Refusal::Cluster));
    }
    if wire.to.get() != me.id || from == me.id {
        return Err(refuse(Refusal::UnknownId));
    }
    let claimed = lookup(from).ok_or(refuse(Refusal::UnknownId))?;
    if from > me.id {
        return Err(refuse(Refusal::Direction));
    }
    if source != claimed.ip {
        return Err(refuse(Refusal::Address));
    }
    if claimed.admin_down {
        return Err(refuse(Refusal::AdminDown));
    }
    if claimed.alive.is_some_and(|i| i != peer.incarnation) {
        return Err(refuse(Refusal::Duplicate));
    }
    Ok(greeting)
}

/// Judges the answer to the `Hello` that was sent to `expected`.
///
/// `Err` means that what answered there is not that peer, for the reason given.
pub(crate) fn check_answer(
    bytes: &Bytes,
    me: &Identity,
    expected: NodeId,
) -> Result<Answer, Refusal> {
    let wire: Wire = zerocopy::transmute!(*bytes);
    if wire.magic != MAGIC {
        return Err(Refusal::Malformed);
    }
    if wire.kind == REFUSAL {
        // A refusal may come from another version, so nothing else of it is believed.
        return Refusal::from_wire(wire.reason)
            .map(Answer::Refused)
            .ok_or(Refusal::Malformed);
    }
    if wire.version.get() != VERSION {
        return Err(Refusal::Version);
    }
    let greeting = read(&wire)
        .filter(|_| wire.kind == WELCOME && wire.reason == 0)
        .ok_or(Refusal::Malformed)?;
    let peer = &greeting.peer;
    if peer.cluster != me.cluster {
        return Err(Refusal::Cluster);
    }
    if peer.id != expected || wire.to.get() != me.id || wire.to_incarnation.get() != me.incarnation
    {
        return Err(Refusal::UnknownId);
    }
    Ok(Answer::Welcome(greeting))
}

/// What the greeting says, if it makes sense.
fn read(wire: &Wire) -> Option<Greeting> {
    use super::credit::{
        call_cost,
        least_window,
        message_cost, //
    };
    let bounds = Bounds {
        message: wire.max_message.get(),
        rcall: wire.max_rcall.get(),
    };
    let windows = [wire.queue_bytes.get(), wire.rcall_bytes.get()];
    let granted = wire.granted.map(U64::get);
    // The same rules as in `config`: smaller windows could leave a sender waiting for ever.
    let sane = usize::from(wire.from.get()) < MAX_NODES
        && usize::from(wire.to.get()) < MAX_NODES
        && wire.incarnation.get() != 0
        && wire.dead_ms.get() != 0
        && windows[0] >= least_window(message_cost(bounds.message))
        && windows[1] >= least_window(call_cost(bounds.rcall, bounds.rcall))
        && windows.iter().all(|&w| w <= 1 << 40)
        && granted.iter().zip(&windows).all(|(g, w)| g <= w);
    if !sane {
        return None;
    }
    let peer = Identity {
        id: wire.from.get(),
        cluster: ClusterName::from_wire(wire.cluster)?,
        incarnation: wire.incarnation.get(),
        dead_ms: wire.dead_ms.get(),
        bounds,
        windows,
    };
    Some(Greeting { peer, granted })
}
