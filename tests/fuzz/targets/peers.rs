// SPDX-License-Identifier: GPL-2.0

//! A peer list that is accepted can be printed and read again, and means what it says; of one that
//! is not, the first entry that is wrong is named, with what is wrong with it.

use super::config::LIMITS;
use crate::config::{
    parse_member,
    Addr,
    Config,
    Invalid,
    Member,
    NodeId,
    Reason, //
};
use crate::script::Script;
use core::net::{
    IpAddr,
    Ipv6Addr,
    SocketAddr,
    SocketAddrV6, //
};
use kernel::memory;

fn parse<'a>(id: NodeId, port: u16, entries: &[&'a str]) -> Result<Config, Invalid<'a>> {
    Config::new(
        id.into(),
        "kccm",
        port.into(),
        entries.iter().copied(),
        LIMITS,
    )
}

/// What an entry says, read in another way than by `config.rs`: from its end.
fn member(entry: &str, default_port: u16) -> Option<Member> {
    let (id, mut host) = entry.split_once('=')?;
    let mut port = default_port;
    if let Some((rest, digits)) = host.rsplit_once(':') {
        // Without brackets, the last colon is not necessarily one before a port.
        if rest.ends_with(']') || !rest.contains(':') {
            (host, port) = (rest, number(digits)?.try_into().ok()?);
        }
    }
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let addr = match inner {
        None => SocketAddr::new(IpAddr::V4(host.parse().ok()?), port),
        Some(inner) => {
            let (ip, scope) = inner.split_once('%').unwrap_or((inner, "0"));
            let ip: Ipv6Addr = ip.parse().ok()?;
            match ip.to_ipv4_mapped() {
                Some(v4) => {
                    number(scope)?;
                    SocketAddr::new(IpAddr::V4(v4), port)
                }
                None => {
                    let scope = number(scope)?;
                    SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope))
                }
            }
        }
    };
    let id = u16::try_from(number(id)?).ok()?;
    (id < 256 && port != 0 && of_a_node(addr)).then_some(Member { id, addr })
}

/// Digits and nothing else.
fn number(digits: &str) -> Option<u32> {
    let right = digits.bytes().all(|b| b.is_ascii_digit());
    digits.parse().ok().filter(|_| right)
}

/// Whether a node can have this address, and be reached at it.
fn of_a_node(addr: SocketAddr) -> bool {
    match addr {
        SocketAddr::V4(v4) => {
            let first = v4.ip().octets()[0];
            v4.ip().to_bits() != 0 && !(224..240).contains(&first) && v4.ip().to_bits() != u32::MAX
        }
        SocketAddr::V6(v6) => {
            let first = v6.ip().segments()[0];
            let local = first & 0xffc0 == 0xfe80;
            v6.ip().to_bits() != 0 && first >> 8 != 0xff && !(local && v6.scope_id() == 0)
        }
    }
}

/// What is right about every configuration.
fn check(config: &Config, id: NodeId, entries: &[&str], port: u16) {
    assert_eq!(config.me.id, id);
    assert_eq!(config.members.len(), entries.len());
    assert!(config.members.contains(&config.me));
    let ascending = config.members.windows(2).all(|two| two[0].id < two[1].id);
    assert!(ascending, "not sorted, or twice the same id");
    for (i, one) in config.members.iter().enumerate() {
        let twice = config.members[..i].iter().any(|m| m.addr == one.addr);
        assert!(!twice, "{} twice", one.addr);
    }
    for entry in entries {
        let said = member(entry, port);
        assert!(said.is_some_and(|m| config.members.contains(&m)), "{entry}");
    }
}

/// Printed, and read again: with another port where none is given, and in another order.
fn read_again(config: &Config, id: NodeId, port: u16) {
    let printed: Vec<_> = config
        .members
        .iter()
        .rev()
        .map(|member| format!("{}={}", member.id, Addr(member.addr)))
        .collect();
    let entries: Vec<_> = printed.iter().map(String::as_str).collect();
    match parse(id, port ^ 1 | 2, &entries) {
        Ok(again) => assert!(*again.members == *config.members && again.me == config.me),
        Err(invalid) => panic!("{printed:?}: {invalid}"),
    }
}

/// An entry is told to be wrong: it is, and those before it are right.
fn check_entry(entries: &[&str], index: usize, text: &str, reason: Reason, port: u16) {
    assert!((1..=entries.len()).contains(&index));
    assert!(core::ptr::eq(text, entries[index - 1]), "not that entry");
    let before: Vec<_> = entries[..index - 1]
        .iter()
        .map(|entry| parse_member(entry, port).ok())
        .collect();
    let before = |f: fn(&Member, &Member) -> bool, member: &Member| {
        before
            .iter()
            .any(|other| other.is_some_and(|other| f(&other, member)))
    };
    assert!(entries[..index - 1]
        .iter()
        .all(|entry| parse_member(entry, port).is_ok()));
    match (reason, parse_member(text, port)) {
        (Reason::DuplicateId, Ok(this)) => assert!(before(|a, b| a.id == b.id, &this)),
        (Reason::DuplicateAddress, Ok(this)) => assert!(before(|a, b| a.addr == b.addr, &this)),
        (reason, found) => {
            assert_eq!(found.err(), Some(reason));
            assert!(member(text, port).is_none(), "{text} is right");
        }
    }
}

pub(crate) fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let (id, port, short) = (script.u8().into(), script.u16().max(1), script.bit());
    let Ok(text) = core::str::from_utf8(script.rest()) else {
        return;
    };
    // As the kernel does with an array of strings.
    let entries: Vec<_> = match text {
        "" => Vec::new(),
        text => text.split(',').take(256).collect(),
    };
    memory::fail(short);
    let config = parse(id, port, &entries);
    memory::fail(false);
    match config {
        Ok(config) => {
            check(&config, id, &entries, port);
            read_again(&config, id, port);
        }
        Err(invalid) => {
            let line = invalid.to_string();
            match invalid {
                Invalid::Entry {
                    index,
                    text,
                    reason,
                } => {
                    check_entry(&entries, index, text, reason, port);
                    assert!(line.starts_with(&format!("peers: entry {index} \"{text}\": ")));
                }
                Invalid::OwnIdMissing(missing) => {
                    assert_eq!(missing, id);
                    let own = |entry: &&str| parse_member(entry, port).is_ok_and(|m| m.id == id);
                    assert!(!entries.iter().any(own));
                    assert!(line.starts_with("peers: "));
                }
                Invalid::Missing("peers") => assert!(entries.is_empty()),
                Invalid::NoMemory => assert!(short),
                other => panic!("of peers: {other:?}"),
            }
        }
    }
}
