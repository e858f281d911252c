// SPDX-License-Identifier: GPL-2.0

//! What a node is told: its id, its cluster's members, its limits.
//!
//! Pure: text and numbers in, a checked [`Config`] or an [`Invalid`] out, which says what is wrong
//! and where.

use core::net::{
    IpAddr,
    Ipv4Addr,
    SocketAddr,
    SocketAddrV6, //
};
use kernel::fmt;
use kernel::prelude::*;

/// The number of a node in its cluster.
pub(crate) type NodeId = u16;

/// Node ids are smaller than this. `include/kccm.h` says the same.
pub(crate) const MAX_NODES: usize = 256;

/// What `dead_ms` can be, here and at a peer.
pub(crate) const DEAD_MS: core::ops::RangeInclusive<u32> = 100..=3_600_000;

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

/// What the keys of a cluster are called in the keyring: 1 to 128 printable ASCII characters. A
/// key's description is this with a colon and the key's number behind it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyName {
    bytes: [u8; Self::MAX],
    len: usize,
}

impl KeyName {
    /// The longest name.
    const MAX: usize = 128;

    /// Checks a name, `None` if it is empty: the cluster has no key then.
    pub(crate) fn new(name: &str) -> Result<Option<Self>, Invalid<'_>> {
        if name.is_empty() {
            return Ok(None);
        }
        if name.len() > Self::MAX || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Invalid::Key(name));
        }
        let mut bytes = [0; Self::MAX];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        let len = name.len();
        Ok(Some(Self { bytes, len }))
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("?"))
    }
}

/// A node of the cluster and where it listens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    /// Its id.
    pub(crate) id: NodeId,
    /// Its address; its connections to others come from the same IP address, but to those whose address
    /// is of the other family from wherever its kernel chooses.
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
    /// What is kept of what was sent to one peer until it is acknowledged, bytes.
    pub(crate) kept_bytes: u64,
    /// The same in messages and calls.
    pub(crate) kept_frames: u32,
    /// Long messages to one peer wait while so much of them has yet to be sent, bytes.
    pub(crate) unsent_bytes: u64,
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
    #[cfg(any(KCCM_KUNIT, KCCM_BENCH))]
    pub(crate) const DEFAULT: Self = Self {
        max_message: 16 << 20,
        max_rcall: 1 << 20,
        queue_bytes: 32 << 20,
        rcall_bytes: 8 << 20,
        kept_bytes: 32 << 20,
        kept_frames: 16384,
        unsent_bytes: 1 << 20,
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
        let ranges: [(&'static str, u64, u64, u64); 13] = [
            ("max_message", self.max_message.into(), 1, 1 << 30),
            ("max_rcall", self.max_rcall.into(), 1, 16 << 20),
            ("queue_bytes", self.queue_bytes, 4096, 1 << 40),
            ("rcall_bytes", self.rcall_bytes, 4096, 1 << 40),
            ("kept_bytes", self.kept_bytes, 4096, 1 << 40),
            ("kept_frames", self.kept_frames.into(), 1, 1 << 20),
            ("unsent_bytes", self.unsent_bytes, 4096, 1 << 40),
            ("max_long_handlers", self.max_long_handlers.into(), 1, 1024),
            ("listeners", self.listeners.into(), 1, 64),
            (
                "dead_ms",
                self.dead_ms.into(),
                u64::from(*DEAD_MS.start()),
                u64::from(*DEAD_MS.end()),
            ),
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
    let addr = canonical(parse_addr(addr, default_port)?);
    let ip = addr.ip();
    if ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Err(Reason::NotUnicast);
    }
    match addr {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0 => {
            Err(Reason::NoScope)
        }
        _ => Ok(Member { id, addr }),
    }
}

/// Takes an IPv4 address in the clothes of IPv6 for what it is, so that every address has one form.
fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, addr.port()),
        IpAddr::V6(_) => addr,
    }
}

/// `1.2.3.4`, `1.2.3.4:7700`, `[fd00::1]`, `[fd00::1]:7700`, `[fe80::1%2]:7700`
fn parse_addr(text: &str, default_port: u16) -> Result<SocketAddr, Reason> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return if addr.port() == 0 {
            Err(Reason::BadPort)
        } else {
            Ok(addr)
        };
    }
    if let Some(addr) = parse_host(text, default_port) {
        return Ok(addr);
    }
    if parse_ipv6(text, default_port).is_some() {
        return Err(Reason::NoBrackets);
    }
    // An address that is right up to its last colon has a port that is not.
    match text.rsplit_once(':') {
        Some((host, _)) if parse_host(host, default_port).is_some() => Err(Reason::BadPort),
        _ => Err(Reason::BadAddress),
    }
}

/// `1.2.3.4`, `[fd00::1]`, `[fe80::1%2]`
fn parse_host(text: &str, port: u16) -> Option<SocketAddr> {
    match text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        Some(inner) => parse_ipv6(inner, port).map(SocketAddr::V6),
        None => Some(SocketAddr::new(IpAddr::V4(text.parse().ok()?), port)),
    }
}

/// `fd00::1`, or `fe80::1%2` with the index of the interface that a link-local address is on.
fn parse_ipv6(text: &str, port: u16) -> Option<SocketAddrV6> {
    let (ip, scope) = text.split_once('%').unwrap_or((text, "0"));
    if !scope.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (ip, scope) = (ip.parse().ok()?, scope.parse().ok()?);
    Some(SocketAddrV6::new(ip, port, 0, scope))
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
    /// A link-local IPv6 address that does not say on which interface.
    NoScope,
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
            Reason::NoScope => {
                "a link-local address needs the index of its interface, e.g. [fe80::3%2]"
            }
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
    /// The name of the key is too long, or has blanks or other odd characters.
    Key(&'a str),
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
            Invalid::Key(name) => f.write_fmt(fmt!(
                "key: \"{name}\" is not 1 to {} printable characters without blanks",
                KeyName::MAX
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

#[cfg(KCCM_KUNIT)]
#[kunit_tests(kccm_config)]
mod tests {
    use super::*;
    use core::net::Ipv6Addr;
    use kernel::str::CString;

    const PORT: u16 = 7700;

    /// Whether `value` is shown as `text`; if not, the log has what it is shown as.
    fn shows(value: &impl fmt::Display, text: &str) -> Result<bool> {
        let shown = CString::try_from_fmt(fmt!("{value}"))?;
        let same = shown.to_bytes() == text.as_bytes();
        if !same {
            pr_err!("\"{value}\", not \"{text}\"\n");
        }
        Ok(same)
    }

    /// Whether a configuration is refused, with that line for the log.
    fn refused(result: Result<Config, Invalid<'_>>, line: &str) -> Result<bool> {
        match result {
            Ok(_) => {
                pr_err!("accepted, not refused with \"{line}\"\n");
                Ok(false)
            }
            Err(invalid) => shows(&invalid, line),
        }
    }

    /// Node 0 with these entries, and all else as it should be.
    fn with_peers<'a>(entries: &[&'a str]) -> Result<Config, Invalid<'a>> {
        let entries = entries.iter().copied();
        Config::new(0, "test", PORT.into(), entries, Limits::DEFAULT)
    }

    /// Two nodes, and all else as given.
    fn with(node_id: i64, cluster: &str, port: u32, limits: Limits) -> Result<Config, Invalid<'_>> {
        let entries = ["0=10.1.0.1", "255=10.1.0.2"];
        Config::new(node_id, cluster, port, entries.into_iter(), limits)
    }

    const fn v4(ip: [u8; 4], port: u16) -> SocketAddr {
        let [a, b, c, d] = ip;
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), port)
    }

    const fn v6(ip: u128, port: u16, scope: u32) -> SocketAddr {
        SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::from_bits(ip), port, 0, scope))
    }

    const FD00_3: u128 = 0xfd00 << 112 | 3;
    const FE80_1: u128 = 0xfe80 << 112 | 1;

    // ---- The cluster's name.

    #[test]
    fn name_is_1_to_64_printable_characters() {
        let longest = [b'x'; ClusterName::MAX + 1];
        for len in 0..=longest.len() {
            let valid = (1..=64).contains(&len);
            assert_eq!(ClusterName::new(&longest[..len]).is_some(), valid);
        }
        for byte in 0..=u8::MAX {
            let valid = (0x21..=0x7e).contains(&byte);
            for name in [[byte, b'x', b'x'], [b'x', byte, b'x'], [b'x', b'x', byte]] {
                assert_eq!(ClusterName::new(&name).is_some(), valid);
            }
        }
    }

    // ---- The key's name.

    #[test]
    fn key_name_is_1_to_128_printable_characters() -> Result {
        let longest = [b'k'; KeyName::MAX + 1];
        for len in 0..=longest.len() {
            let name = core::str::from_utf8(&longest[..len])?;
            match KeyName::new(name) {
                Ok(None) => assert_eq!(len, 0),
                Ok(Some(key)) => assert!(len <= 128 && shows(&key, name)?),
                Err(invalid) => assert!(len == 129 && invalid == Invalid::Key(name)),
            }
        }
        for byte in 0..=u8::MAX {
            let valid = (0x21..=0x7e).contains(&byte);
            for name in [[byte, b'k'], [b'k', byte]] {
                let Ok(name) = core::str::from_utf8(&name) else {
                    continue;
                };
                assert_eq!(KeyName::new(name).is_ok(), valid);
            }
        }
        let blank = KeyName::new("a key").err().ok_or(EINVAL)?;
        let line = "key: \"a key\" is not 1 to 128 printable characters without blanks";
        assert!(shows(&blank, line)?);
        Ok(())
    }

    #[test]
    fn name_comes_back_from_the_wire() -> Result {
        for len in 1..=ClusterName::MAX {
            let name = ClusterName::new(&[b'n'; ClusterName::MAX][..len]).ok_or(EINVAL)?;
            let mut wire = [0; ClusterName::MAX];
            wire[..len].fill(b'n');
            assert_eq!(*name.wire(), wire);
            assert!(ClusterName::from_wire(wire) == Some(name));
            // Nothing comes after the zeros, and nothing else before them.
            for i in len + 1..wire.len() {
                let mut wire = wire;
                wire[i] = b'n';
                assert!(ClusterName::from_wire(wire).is_none());
            }
            for i in 0..len {
                let mut wire = wire;
                wire[i] = b' ';
                assert!(ClusterName::from_wire(wire).is_none());
            }
        }
        assert!(ClusterName::from_wire([0; ClusterName::MAX]).is_none());
        Ok(())
    }

    #[test]
    fn name_is_shown_without_its_padding() -> Result {
        let longest = "0123456789abcdef0123456789ABCDEF0123456789abcdef0123456789ABCDEF";
        for text in ["x", "prod-1", longest] {
            let name = ClusterName::new(text.as_bytes()).ok_or(EINVAL)?;
            assert!(shows(&name, text)?);
        }
        let prefix = ClusterName::new(b"prod");
        assert!(prefix.is_some() && prefix != ClusterName::new(b"prod-1"));
        Ok(())
    }

    #[test]
    fn wrong_name_is_refused() -> Result {
        let too_long = "0123456789abcdef0123456789ABCDEF0123456789abcdef0123456789ABCDEFx";
        let cases = [
            (
                "",
                "cluster: \"\" is not 1 to 64 printable characters without blanks",
            ),
            (
                "my cluster",
                "cluster: \"my cluster\" is not 1 to 64 printable characters without blanks",
            ),
            (
                "b\u{fc}ro",
                "cluster: \"b\u{fc}ro\" is not 1 to 64 printable characters without blanks",
            ),
        ];
        for (name, line) in cases {
            assert!(refused(with(0, name, 7700, Limits::DEFAULT), line)?);
        }
        let invalid = with(0, too_long, 7700, Limits::DEFAULT).err();
        assert_eq!(invalid, Some(Invalid::Cluster(too_long)));
        Ok(())
    }

    // ---- Entries of `peers`.

    #[test]
    fn entry_in_every_form() {
        let cases = [
            ("0=10.1.0.1", 0, v4([10, 1, 0, 1], PORT)),
            ("1=10.1.0.2:7701", 1, v4([10, 1, 0, 2], 7701)),
            ("255=255.0.0.1:1", 255, v4([255, 0, 0, 1], 1)),
            ("007=127.0.0.1:65535", 7, v4([127, 0, 0, 1], 65535)),
            ("2=[fd00::3]", 2, v6(FD00_3, PORT, 0)),
            ("2=[fd00::3]:7701", 2, v6(FD00_3, 7701, 0)),
            ("2=[FD00:0:0:0:0:0:0:3]:1", 2, v6(FD00_3, 1, 0)),
            ("2=[fd00::3]:65535", 2, v6(FD00_3, 65535, 0)),
            ("3=[::1]", 3, v6(1, PORT, 0)),
            // A link-local address comes with the index of its interface.
            ("4=[fe80::1%2]", 4, v6(FE80_1, PORT, 2)),
            ("4=[fe80::1%2]:7701", 4, v6(FE80_1, 7701, 2)),
            ("4=[fe80::1%4294967295]", 4, v6(FE80_1, PORT, u32::MAX)),
            // An IPv4 address in IPv6's clothes is what it is.
            ("5=[::ffff:10.1.0.1]", 5, v4([10, 1, 0, 1], PORT)),
            ("5=[::ffff:a01:1]:7701", 5, v4([10, 1, 0, 1], 7701)),
        ];
        let mut wrong = 0;
        for (text, id, addr) in cases {
            let member = parse_member(text, PORT);
            if member.ok() != Some(Member { id, addr }) {
                pr_err!("\"{text}\": {:?}\n", member.map(|m| (m.id, m.addr)));
                wrong += 1;
            }
        }
        assert_eq!(wrong, 0);
    }

    #[test]
    fn wrong_entry_has_its_reason() {
        use Reason::*;
        let cases = [
            ("", NoEquals),
            ("0", NoEquals),
            ("10.1.0.1", NoEquals),
            ("0:10.1.0.1", NoEquals),
            ("=10.1.0.1", BadId),
            (" 0=10.1.0.1", BadId),
            ("0 =10.1.0.1", BadId),
            ("+1=10.1.0.1", BadId),
            ("-1=10.1.0.1", BadId),
            ("0x1=10.1.0.1", BadId),
            ("one=10.1.0.1", BadId),
            ("\u{664}=10.1.0.1", BadId),
            ("256=10.1.0.1", IdRange),
            ("65536=10.1.0.1", IdRange),
            ("99999999999999999999=10.1.0.1", IdRange),
            ("0=", BadAddress),
            ("0= 10.1.0.1", BadAddress),
            ("0=10.1.0.1 ", BadAddress),
            ("0=10.1.0.1\n", BadAddress),
            ("0=10.1.0", BadAddress),
            ("0=10.1.0.1.1", BadAddress),
            ("0=10.1.0.256", BadAddress),
            ("0=10.1.0.01", BadAddress),
            ("0=node0", BadAddress),
            ("0=node0:7700", BadAddress),
            ("0==10.1.0.1", BadAddress),
            ("0=:7700", BadAddress),
            ("0=[10.1.0.1]", BadAddress),
            ("0=[]", BadAddress),
            ("0=[fd00::3", BadAddress),
            ("0=fd00::3]", BadAddress),
            ("0=[fd00::3]7700", BadAddress),
            ("0=[[fd00::3]]", BadAddress),
            ("0=[fd00:::3]", BadAddress),
            ("0=[fd00::g]:7700", BadAddress),
            ("0=[fe80::1%]", BadAddress),
            ("0=[fe80::1%eth0]", BadAddress),
            ("0=[fe80::1%+2]", BadAddress),
            ("0=[fe80::1%4294967296]", BadAddress),
            ("0=[fe80::1%2%2]", BadAddress),
            ("0=fd00::3", NoBrackets),
            ("0=fd00::3:7700", NoBrackets),
            ("0=::", NoBrackets),
            ("0=fe80::1%2", NoBrackets),
            ("0=10.1.0.1:", BadPort),
            ("0=10.1.0.1:0", BadPort),
            ("0=10.1.0.1:65536", BadPort),
            ("0=10.1.0.1:77 00", BadPort),
            ("0=10.1.0.1:+7700", BadPort),
            ("0=10.1.0.1:kccm", BadPort),
            ("0=[fd00::3]:", BadPort),
            ("0=[fd00::3]:0", BadPort),
            ("0=[fd00::3]:65536", BadPort),
            ("0=[fe80::1%2]:0", BadPort),
            ("0=[fe80::1%2]:65536", BadPort),
            ("0=0.0.0.0", NotUnicast),
            ("0=0.0.0.0:7700", NotUnicast),
            ("0=224.0.0.1", NotUnicast),
            ("0=239.255.255.255", NotUnicast),
            ("0=255.255.255.255", NotUnicast),
            ("0=[::]", NotUnicast),
            ("0=[::]:7700", NotUnicast),
            ("0=[ff02::1]", NotUnicast),
            ("0=[::ffff:0.0.0.0]", NotUnicast),
            ("0=[::ffff:224.0.0.1]:7700", NotUnicast),
            ("0=[fe80::1]", NoScope),
            ("0=[fe80::1]:7700", NoScope),
            ("0=[febf::1%0]", NoScope),
        ];
        let mut wrong = 0;
        for (text, reason) in cases {
            let member = parse_member(text, PORT);
            if member.err() != Some(reason) {
                let found = member.map(|m| (m.id, m.addr));
                pr_err!("\"{text}\": {found:?}, not {reason:?}\n");
                wrong += 1;
            }
        }
        assert_eq!(wrong, 0);
    }

    #[test]
    fn wrong_entry_is_told_with_its_number() -> Result {
        let cases: [(&[&str], &str); 11] = [
            (
                &["10.1.0.1"],
                "peers: entry 1 \"10.1.0.1\": \
                 expected id=address, e.g. 0=10.1.0.1 or 2=[fd00::3]:7700",
            ),
            (
                &["0=10.1.0.1", "1=10.1.0.2", ""],
                "peers: entry 3 \"\": expected id=address, e.g. 0=10.1.0.1 or 2=[fd00::3]:7700",
            ),
            (
                &["0=10.1.0.1", "b=10.1.0.2"],
                "peers: entry 2 \"b=10.1.0.2\": the id before '=' is not a number",
            ),
            (
                &["0=10.1.0.1", "256=10.1.0.2"],
                "peers: entry 2 \"256=10.1.0.2\": the id is not in 0..255",
            ),
            (
                &["0=10.1.0.1", "1=node1"],
                "peers: entry 2 \"1=node1\": not an IPv4 address or an IPv6 address in brackets",
            ),
            (
                &["0=10.1.0.1", "1=fd00::3"],
                "peers: entry 2 \"1=fd00::3\": an IPv6 address needs brackets, e.g. [fd00::3]",
            ),
            (
                &["0=10.1.0.1", "1=10.1.0.2:0"],
                "peers: entry 2 \"1=10.1.0.2:0\": the port is not in 1..65535",
            ),
            (
                &["0=10.1.0.1", "1=224.0.0.1"],
                "peers: entry 2 \"1=224.0.0.1\": the address is not one that a node can have",
            ),
            (
                &["0=10.1.0.1", "1=[fe80::3]"],
                "peers: entry 2 \"1=[fe80::3]\": \
                 a link-local address needs the index of its interface, e.g. [fe80::3%2]",
            ),
            (
                &["0=10.1.0.1", "1=10.1.0.2", "00=10.1.0.3"],
                "peers: entry 3 \"00=10.1.0.3\": another entry has the same id",
            ),
            (
                &["0=10.1.0.1", "1=10.1.0.2", "2=10.1.0.1:7700"],
                "peers: entry 3 \"2=10.1.0.1:7700\": another entry has the same address and port",
            ),
        ];
        for (entries, line) in cases {
            assert!(refused(with_peers(entries), line)?);
        }
        // The first of several.
        let invalid = with_peers(&["0=10.1.0.1", "x", "y=", "1=10.1.0.1"]).err();
        let first = Invalid::Entry {
            index: 2,
            text: "x",
            reason: Reason::NoEquals,
        };
        assert_eq!(invalid, Some(first));
        Ok(())
    }

    #[test]
    fn duplicates_are_found_anywhere() {
        use Reason::*;
        // (an entry that some other entry is in the way of, why)
        let cases = [
            ("1=10.1.0.9", DuplicateId),
            ("001=10.1.0.9", DuplicateId),
            ("1=10.1.0.1", DuplicateId),
            ("9=10.1.0.1", DuplicateAddress),
            ("9=10.1.0.1:7700", DuplicateAddress),
            ("9=[::ffff:10.1.0.1]", DuplicateAddress),
            ("9=[fd00:0:0::3]", DuplicateAddress),
            ("9=[fe80::1%02]:7700", DuplicateAddress),
        ];
        let others = ["0=10.1.0.1", "2=[fd00::3]", "1=10.1.0.2", "3=[fe80::1%2]"];
        for (entry, reason) in cases {
            let [a, b, c, d] = others;
            let expected = Invalid::Entry {
                index: 5,
                text: entry,
                reason,
            };
            assert_eq!(with_peers(&[a, b, c, d, entry]).err(), Some(expected));
        }
        // A host may have several nodes, and a scope makes an address another one.
        assert!(with_peers(&["0=10.1.0.1", "1=10.1.0.1:7701"]).is_ok());
        assert!(with_peers(&["0=[fe80::1%2]", "1=[fe80::1%3]"]).is_ok());
    }

    #[test]
    fn members_are_sorted_by_id() -> Result {
        let entries = ["0=10.1.0.1", "7=10.1.0.2", "8=10.1.0.3", "255=10.1.0.4"];
        for order in 0..24 {
            let mut left = KVec::new();
            left.extend_from_slice(&entries, GFP_KERNEL)?;
            let mut shuffled = [""; 4];
            for (entry, pick) in shuffled
                .iter_mut()
                .zip([order % 4, order / 4 % 3, order / 12, 0])
            {
                *entry = left.remove(pick)?;
            }
            let config = with_peers(&shuffled).map_err(|_| EINVAL)?;
            assert!(config.members.iter().map(|m| m.id).eq([0, 7, 8, 255]));
            for (member, last) in config.members.iter().zip(1..) {
                assert_eq!(member.addr, v4([10, 1, 0, last], PORT));
            }
            assert!(config.me == config.members[0]);
        }
        Ok(())
    }

    #[test]
    fn cluster_of_all_ids() -> Result {
        let mut texts = KVec::new();
        for id in (0..MAX_NODES).rev() {
            texts.push(CString::try_from_fmt(fmt!("{id}=10.1.0.{id}"))?, GFP_KERNEL)?;
        }
        let entries = || texts.iter().filter_map(|text| text.to_str().ok());
        for id in [0, 1, 128, 255] {
            let config = Config::new(id, "test", 7700, entries(), Limits::DEFAULT);
            let config = config.map_err(|_| EINVAL)?;
            assert!(config.members.iter().map(|m| m.id).eq(0..256));
            assert_eq!(i64::from(config.me.id), id);
            assert_eq!(config.me.addr, v4([10, 1, 0, id as u8], PORT));
        }
        Ok(())
    }

    // ---- The other parameters.

    #[test]
    fn own_entry_is_needed() -> Result {
        let entries = ["0=10.1.0.1", "2=10.1.0.2"];
        for (id, found) in [(0, true), (1, false), (2, true), (3, false)] {
            let config = Config::new(id, "test", 7700, entries.into_iter(), Limits::DEFAULT);
            assert_eq!(config.is_ok(), found);
        }
        let config = Config::new(1, "test", 7700, entries.into_iter(), Limits::DEFAULT);
        assert!(refused(
            config,
            "peers: no entry for this node's own id 1; list every node, this one too"
        )?);
        assert!(refused(with_peers(&[]), "peers: must be given")?);
        Ok(())
    }

    #[test]
    fn node_id_is_in_range() -> Result {
        for id in [0, 255] {
            let config = with(id, "test", 7700, Limits::DEFAULT).map_err(|_| EINVAL)?;
            assert_eq!(i64::from(config.me.id), id);
        }
        let cases = [
            (-1, "node_id: must be given"),
            (i64::MIN, "node_id: must be given"),
            (256, "node_id: 256 is not in 0..255"),
            // These must not be taken for 0.
            (65536, "node_id: 65536 is not in 0..255"),
            (1 << 32, "node_id: 4294967296 is not in 0..255"),
            (i64::MAX, "node_id: 9223372036854775807 is not in 0..255"),
        ];
        for (id, line) in cases {
            assert!(refused(with(id, "test", 7700, Limits::DEFAULT), line)?);
        }
        Ok(())
    }

    #[test]
    fn port_is_in_range_and_for_those_without() -> Result {
        for port in [1, 7700, 65535] {
            let entries = ["0=10.1.0.1", "1=10.1.0.2:1234", "2=[fd00::3]"];
            let config = Config::new(0, "test", port, entries.into_iter(), Limits::DEFAULT);
            let config = config.map_err(|_| EINVAL)?;
            let ports = config.members.iter().map(|m| u32::from(m.addr.port()));
            assert!(ports.eq([port, 1234, port]));
        }
        let cases = [
            (0, "port: 0 is not in 1..65535"),
            (65536, "port: 65536 is not in 1..65535"),
            (65537, "port: 65537 is not in 1..65535"),
            (u32::MAX, "port: 4294967295 is not in 1..65535"),
        ];
        for (port, line) in cases {
            assert!(refused(with(0, "test", port, Limits::DEFAULT), line)?);
        }
        Ok(())
    }

    /// Limits that leave every one of them its whole range.
    const WIDE: Limits = Limits {
        max_message: 1,
        max_rcall: 1,
        queue_bytes: 1 << 40,
        rcall_bytes: 1 << 40,
        backoff_min_ms: 10,
        backoff_max_ms: 60_000,
        ..Limits::DEFAULT
    };

    /// Sets a limit.
    type Set = fn(&mut Limits, u64);

    /// Every limit that has a range, how to set it, and the range.
    const RANGES: [(&str, Set, u64, u64); 10] = [
        ("max_message", |l, v| l.max_message = v as u32, 1, 1 << 30),
        ("max_rcall", |l, v| l.max_rcall = v as u32, 1, 16 << 20),
        ("queue_bytes", |l, v| l.queue_bytes = v, 4096, 1 << 40),
        ("rcall_bytes", |l, v| l.rcall_bytes = v, 4096, 1 << 40),
        (
            "max_long_handlers",
            |l, v| l.max_long_handlers = v as u32,
            1,
            1024,
        ),
        ("listeners", |l, v| l.listeners = v as u32, 1, 64),
        ("dead_ms", |l, v| l.dead_ms = v as u32, 100, 3_600_000),
        (
            "handshake_ms",
            |l, v| l.handshake_ms = v as u32,
            100,
            60_000,
        ),
        (
            "backoff_min_ms",
            |l, v| l.backoff_min_ms = v as u32,
            10,
            60_000,
        ),
        (
            "backoff_max_ms",
            |l, v| l.backoff_max_ms = v as u32,
            10,
            60_000,
        ),
    ];

    #[test]
    fn limits_at_the_ends_of_their_ranges() -> Result {
        assert!(with(0, "test", 7700, Limits::DEFAULT).is_ok());
        assert!(with(0, "test", 7700, WIDE).is_ok());
        for (param, set, min, max) in RANGES {
            for value in [min, min + 1, max - 1, max] {
                let mut limits = WIDE;
                set(&mut limits, value);
                if let Err(invalid) = with(0, "test", 7700, limits) {
                    pr_err!("{invalid}\n");
                    return Err(EINVAL);
                }
            }
            for value in [0, min - 1, max + 1, u64::from(u32::MAX)] {
                if (min..=max).contains(&value) {
                    continue;
                }
                let mut limits = WIDE;
                set(&mut limits, value);
                let expected = Invalid::Range {
                    param,
                    value,
                    min,
                    max,
                };
                assert_eq!(with(0, "test", 7700, limits).err(), Some(expected));
            }
        }
        let mut limits = WIDE;
        limits.max_message = 0;
        let line = "max_message: 0 is not in 1..1073741824";
        assert!(refused(with(0, "test", 7700, limits), line)?);
        limits = WIDE;
        limits.queue_bytes = u64::MAX;
        let line = "queue_bytes: 18446744073709551615 is not in 4096..1099511627776";
        assert!(refused(with(0, "test", 7700, limits), line)?);
        Ok(())
    }

    #[test]
    fn limits_fit_each_other() -> Result {
        // (what to set, the least it may be, the line for one less)
        let cases: [(Limits, Set, u64, &str); 5] = [
            (
                Limits {
                    backoff_min_ms: 500,
                    ..WIDE
                },
                |l, v| l.backoff_max_ms = v as u32,
                500,
                "backoff_max_ms: must be at least 500: it is at least backoff_min_ms",
            ),
            (
                Limits {
                    max_message: 16 << 20,
                    ..WIDE
                },
                |l, v| l.queue_bytes = v,
                22_369_963,
                "queue_bytes: must be at least 22369963: \
                 a message of max_message must fit, and a third more",
            ),
            (
                Limits {
                    max_message: 1 << 30,
                    ..WIDE
                },
                |l, v| l.queue_bytes = v,
                1_431_656_107,
                "queue_bytes: must be at least 1431656107: \
                 a message of max_message must fit, and a third more",
            ),
            (
                Limits {
                    max_rcall: 1 << 20,
                    ..WIDE
                },
                |l, v| l.rcall_bytes = v,
                2_796_544,
                "rcall_bytes: must be at least 2796544: \
                 a call with arguments and reply of max_rcall must fit, and a third more",
            ),
            (
                Limits {
                    max_rcall: 16 << 20,
                    ..WIDE
                },
                |l, v| l.rcall_bytes = v,
                44_739_584,
                "rcall_bytes: must be at least 44739584: \
                 a call with arguments and reply of max_rcall must fit, and a third more",
            ),
        ];
        for (mut limits, set, least, line) in cases {
            set(&mut limits, least);
            assert!(with(0, "test", 7700, limits).is_ok());
            set(&mut limits, least - 1);
            assert!(refused(with(0, "test", 7700, limits), line)?);
        }
        Ok(())
    }

    #[test]
    fn first_wrong_parameter_is_told() -> Result {
        let good = Limits::DEFAULT;
        let bad = Limits {
            listeners: 65,
            ..good
        };
        let config = |id, cluster, port, limits, entry| {
            Config::new(id, cluster, port, core::iter::once(entry), limits)
        };
        // Each is right in one thing more.
        let cases = [
            (config(-1, "", 0, bad, "x"), "node_id: must be given"),
            (
                config(0, "", 0, bad, "x"),
                "cluster: \"\" is not 1 to 64 printable characters without blanks",
            ),
            (config(0, "c", 0, bad, "x"), "port: 0 is not in 1..65535"),
            (config(0, "c", 1, bad, "x"), "listeners: 65 is not in 1..64"),
            (
                config(0, "c", 1, good, "1="),
                "peers: entry 1 \"1=\": not an IPv4 address or an IPv6 address in brackets",
            ),
            (
                config(0, "c", 1, good, "1=10.1.0.1"),
                "peers: no entry for this node's own id 0; list every node, this one too",
            ),
        ];
        for (config, line) in cases {
            assert!(refused(config, line)?);
        }
        assert!(config(0, "c", 1, good, "0=10.1.0.1").is_ok());
        Ok(())
    }

    #[test]
    fn addresses_and_no_memory_are_shown() -> Result {
        assert!(shows(&Invalid::NoMemory, "out of memory")?);
        assert!(shows(&Addr(v4([10, 1, 0, 1], 7700)), "10.1.0.1:7700")?);
        assert!(shows(&Addr(v6(FD00_3, 7700, 0)), "[fd00::3]:7700")?);
        assert!(shows(&Addr(v6(FE80_1, 1, 2)), "[fe80::1%2]:1")?);
        Ok(())
    }
}
