// SPDX-License-Identifier: GPL-2.0

//! What a node is told: its id, its cluster's members, its limits.
//!
//! Pure: text and numbers in, a checked [`Config`] or an [`Invalid`] out, which says what is wrong
//! and where.

use core::net::{
    IpAddr,
    Ipv6Addr,
    SocketAddr, //
};
use kernel::fmt;
use kernel::prelude::*;

/// The number of a node in its cluster.
pub(crate) type NodeId = u16;

/// Node ids are smaller than this. `include/kccm.h` says the same.
pub(crate) const MAX_NODES: usize = 256;

/// The name of a cluster: 1 to 64 printable ASCII characters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClusterName {
    /// Zero-padded, as on the wire.
    bytes: [u8; Self::MAX],
}

impl ClusterName {
    /// The longest name.
    pub(crate) const MAX: usize = 64;

    /// Checks a name.
    pub(crate) fn new(name: &[u8]) -> Option<Self> {
        if name.is_empty() || name.len() > Self::MAX || !name.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        let mut bytes = [0; Self::MAX];
        bytes[..name.len()].copy_from_slice(name);
        Some(Self { bytes })
    }

    /// Checks a name as it came from the wire: zeros after it, and nothing after them.
    pub(crate) fn from_wire(bytes: [u8; Self::MAX]) -> Option<Self> {
        let len = bytes.iter().position(|&b| b == 0).unwrap_or(Self::MAX);
        Self::new(&bytes[..len]).filter(|name| name.bytes == bytes)
    }

    /// The name as it goes over the wire.
    pub(crate) fn wire(&self) -> &[u8; Self::MAX] {
        &self.bytes
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = self.bytes.iter().position(|&b| b == 0).unwrap_or(Self::MAX);
        f.write_str(core::str::from_utf8(&self.bytes[..len]).unwrap_or("?"))
    }
}

/// A node of the cluster and where it listens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its id.
    pub(crate) id: NodeId,
    /// Its address; its connections to others come from the same IP address.
    pub(crate) addr: SocketAddr,
}

/// An address, for the log and sysfs.
pub(crate) struct Addr(pub(crate) SocketAddr);

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        core::fmt::Display::fmt(&self.0, f)
    }
}

/// The bounds of a node, each a module parameter of the same name.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Longest message, bytes.
    pub(crate) max_message: u32,
    /// Longest arguments or reply of a remote call, bytes.
    pub(crate) max_rcall: u32,
    /// What one peer may have queued here in messages, bytes.
    pub(crate) queue_bytes: u64,
    /// What one peer may have here in calls that are not finished, bytes.
    pub(crate) rcall_bytes: u64,
    /// How many long handlers run at once.
    pub(crate) max_long_handlers: u32,
    /// How many listener threads.
    pub(crate) listeners: u32,
    /// A peer silent for so long is dead, milliseconds.
    pub(crate) dead_ms: u32,
    /// How long connecting and the handshake may take, each, milliseconds.
    pub(crate) handshake_ms: u32,
    /// First and longest pause between attempts to connect, milliseconds.
    pub(crate) backoff_min_ms: u32,
    /// See [`Limits::backoff_min_ms`].
    pub(crate) backoff_max_ms: u32,
    /// A short handler that takes longer is warned about, microseconds.
    pub(crate) short_warn_us: u32,
}

impl Limits {
    /// The module's defaults.
    #[cfg(KCCM_KUNIT)]
    pub(crate) const DEFAULT: Self = Self {
        max_message: 16 << 20,
        max_rcall: 1 << 20,
        queue_bytes: 32 << 20,
        rcall_bytes: 8 << 20,
        max_long_handlers: 32,
        listeners: 1,
        dead_ms: 3000,
        handshake_ms: 2000,
        backoff_min_ms: 100,
        backoff_max_ms: 2000,
        short_warn_us: 10_000,
    };

    /// Checks every bound by itself, and those that only make sense together.
    fn check(&self) -> Result<(), Invalid<'static>> {
        use crate::conn::credit::{
            call_cost,
            least_window,
            message_cost, //
        };
        let ranges: [(&'static str, u64, u64, u64); 10] = [
            ("max_message", self.max_message.into(), 1, 1 << 30),
            ("max_rcall", self.max_rcall.into(), 1, 16 << 20),
            ("queue_bytes", self.queue_bytes, 4096, 1 << 40),
            ("rcall_bytes", self.rcall_bytes, 4096, 1 << 40),
            ("max_long_handlers", self.max_long_handlers.into(), 1, 1024),
            ("listeners", self.listeners.into(), 1, 64),
            ("dead_ms", self.dead_ms.into(), 100, 3_600_000),
            ("handshake_ms", self.handshake_ms.into(), 100, 60_000),
            ("backoff_min_ms", self.backoff_min_ms.into(), 10, 60_000),
            ("backoff_max_ms", self.backoff_max_ms.into(), 10, 60_000),
        ];
        for (param, value, min, max) in ranges {
            if value < min || value > max {
                return Err(Invalid::Range {
                    param,
                    value,
                    min,
                    max,
                });
            }
        }
        if self.backoff_max_ms < self.backoff_min_ms {
            return Err(Invalid::TooSmall {
                param: "backoff_max_ms",
                least: self.backoff_min_ms.into(),
                because: "it is at least backoff_min_ms",
            });
        }
        let least = least_window(message_cost(self.max_message));
        if self.queue_bytes < least {
            return Err(Invalid::TooSmall {
                param: "queue_bytes",
                least,
                because: "a message of max_message must fit, and a third more",
            });
        }
        let least = least_window(call_cost(self.max_rcall, self.max_rcall));
        if self.rcall_bytes < least {
            return Err(Invalid::TooSmall {
                param: "rcall_bytes",
                least,
                because: "a call with arguments and reply of max_rcall must fit, and a third more",
            });
        }
        Ok(())
    }
}

/// All that a node is told.
pub(crate) struct Config {
    /// The node's own entry.
    pub(crate) me: Member,
    /// All nodes, this one too, by ascending id.
    pub(crate) members: KVec<Member>,
    /// The cluster's name.
    pub(crate) cluster: ClusterName,
    /// The bounds.
    pub(crate) limits: Limits,
}

impl Config {
    /// Checks everything and puts it together.
    ///
    /// `node_id`: negative when it was not given. `entries`: as for the module parameter `peers`.
    pub(crate) fn new<'a>(
        node_id: i64,
        cluster: &'a str,
        port: u32,
        entries: impl Iterator<Item = &'a str>,
        limits: Limits,
    ) -> Result<Self, Invalid<'a>> {
        if node_id < 0 {
            return Err(Invalid::Missing("node_id"));
        }
        let node_id = NodeId::try_from(node_id)
            .ok()
            .filter(|&id| usize::from(id) < MAX_NODES)
            .ok_or(Invalid::Range {
                param: "node_id",
                value: node_id.unsigned_abs(),
                min: 0,
                max: MAX_NODES as u64 - 1,
            })?;
        let cluster_name = ClusterName::new(cluster.as_bytes()).ok_or(Invalid::Cluster(cluster))?;
        let port = u16::try_from(port)
            .ok()
            .filter(|&port| port != 0)
            .ok_or(Invalid::Range {
                param: "port",
                value: port.into(),
                min: 1,
                max: 65535,
            })?;
        limits.check()?;
        let members = parse_members(entries, port)?;
        if members.is_empty() {
            return Err(Invalid::Missing("peers"));
        }
        let me = *members
            .iter()
            .find(|m| m.id == node_id)
            .ok_or(Invalid::OwnIdMissing(node_id))?;
        Ok(Self {
            me,
            members,
            cluster: cluster_name,
            limits,
        })
    }
}

/// Parses the entries, each `id=address` or `id=address:port`, and sorts them by id.
fn parse_members<'a>(
    entries: impl Iterator<Item = &'a str>,
    port: u16,
) -> Result<KVec<Member>, Invalid<'a>> {
    let mut members: KVec<Member> = KVec::new();
    for (index, text) in entries.enumerate() {
        let entry = |reason| Invalid::Entry {
            index: index + 1,
            text,
            reason,
        };
        let member = parse_member(text, port).map_err(entry)?;
        if members.iter().any(|m| m.id == member.id) {
            return Err(entry(Reason::DuplicateId));
        }
        if members.iter().any(|m| m.addr == member.addr) {
            return Err(entry(Reason::DuplicateAddress));
        }
        members
            .push(member, GFP_KERNEL)
            .map_err(|_| Invalid::NoMemory)?;
        let mut i = members.len() - 1;
        while i > 0 && members[i - 1].id > members[i].id {
            members.swap(i - 1, i);
            i -= 1;
        }
    }
    Ok(members)
}

/// Parses one entry.
pub(crate) fn parse_member(text: &str, default_port: u16) -> Result<Member, Reason> {
    let (id, addr) = text.split_once('=').ok_or(Reason::NoEquals)?;
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Reason::BadId);
    }
    let id = id
        .parse::<NodeId>()
        .ok()
        .filter(|&id| usize::from(id) < MAX_NODES)
        .ok_or(Reason::IdRange)?;
    let addr = parse_addr(addr, default_port)?;
    if addr.ip().is_unspecified() || addr.ip().is_multicast() {
        return Err(Reason::NotUnicast);
    }
    Ok(Member { id, addr })
}

/// `1.2.3.4`, `1.2.3.4:7700`, `[fd00::1]`, `[fd00::1]:7700`
fn parse_addr(text: &str, default_port: u16) -> Result<SocketAddr, Reason> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return if addr.port() == 0 {
            Err(Reason::BadPort)
        } else {
            Ok(addr)
        };
    }
    if let Ok(IpAddr::V4(ip)) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(IpAddr::V4(ip), default_port));
    }
    if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        if let Ok(ip) = inner.parse::<Ipv6Addr>() {
            return Ok(SocketAddr::new(IpAddr::V6(ip), default_port));
        }
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(Reason::NoBrackets);
    }
    // An address that is right up to its last colon has a port that is not.
    match text.rsplit_once(':') {
        Some((host, _)) if parse_addr_only(host) => Err(Reason::BadPort),
        _ => Err(Reason::BadAddress),
    }
}

fn parse_addr_only(host: &str) -> bool {
    let inner = host.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    match inner {
        Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
        None => host.parse::<core::net::Ipv4Addr>().is_ok(),
    }
}

/// What is wrong with an entry of `peers`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reason {
    /// There is no `=`.
    NoEquals,
    /// What stands before the `=` is no number.
    BadId,
    /// The id is too large.
    IdRange,
    /// What stands after the `=` is no address.
    BadAddress,
    /// An IPv6 address without its brackets.
    NoBrackets,
    /// What stands after the address is no port.
    BadPort,
    /// An address that nobody can have for himself.
    NotUnicast,
    /// An earlier entry has the same id.
    DuplicateId,
    /// An earlier entry has the same address and port.
    DuplicateAddress,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::NoEquals => "expected id=address, e.g. 0=10.1.0.1 or 2=[fd00::3]:7700",
            Reason::BadId => "the id before '=' is not a number",
            Reason::IdRange => "the id is not in 0..255",
            Reason::BadAddress => "not an IPv4 address or an IPv6 address in brackets",
            Reason::NoBrackets => "an IPv6 address needs brackets, e.g. [fd00::3]",
            Reason::BadPort => "the port is not in 1..65535",
            Reason::NotUnicast => "the address is not one that a node can have",
            Reason::DuplicateId => "another entry has the same id",
            Reason::DuplicateAddress => "another entry has the same address and port",
        })
    }
}

/// Why a node cannot be made: one line for the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Invalid<'a> {
    /// A parameter that must be given was not.
    Missing(&'static str),
    /// The cluster name is empty, too long, or has blanks or other odd characters.
    Cluster(&'a str),
    /// A number is out of its range.
    Range {
        /// The parameter.
        param: &'static str,
        /// What it was given.
        value: u64,
        /// The least that is allowed.
        min: u64,
        /// The most that is allowed.
        max: u64,
    },
    /// A number is too small for what other parameters say.
    TooSmall {
        /// The parameter.
        param: &'static str,
        /// The least that is allowed.
        least: u64,
        /// Why.
        because: &'static str,
    },
    /// An entry of `peers` is wrong.
    Entry {
        /// Which, from 1.
        index: usize,
        /// The entry.
        text: &'a str,
        /// What is wrong with it.
        reason: Reason,
    },
    /// `peers` has no entry for this node itself.
    OwnIdMissing(NodeId),
    /// Not enough memory to hold the configuration.
    NoMemory,
}

impl fmt::Display for Invalid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Invalid::Missing(param) => f.write_fmt(fmt!("{param}: must be given")),
            Invalid::Cluster(name) => f.write_fmt(fmt!(
                "cluster: \"{name}\" is not 1 to 64 printable characters without blanks"
            )),
            Invalid::Range {
                param,
                value,
                min,
                max,
            } => f.write_fmt(fmt!("{param}: {value} is not in {min}..{max}")),
            Invalid::TooSmall {
                param,
                least,
                because,
            } => f.write_fmt(fmt!("{param}: must be at least {least}: {because}")),
            Invalid::Entry {
                index,
                text,
                reason,
            } => f.write_fmt(fmt!("peers: entry {index} \"{text}\": {reason}")),
            Invalid::OwnIdMissing(id) => f.write_fmt(fmt!(
                "peers: no entry for this node's own id {id}; list every node, this one too"
            )),
            Invalid::NoMemory => f.write_str("out of memory"),
        }
    }
}
