// SPDX-License-Identifier: GPL-2.0

//! Who may join: the cluster's key, as far as it is a matter of deciding.
//!
//! Every segment between two nodes is signed with a secret that both have (TCP-AO, RFC 5925). To
//! change it without a disconnect, a cluster has several for a while, each under a number, the same
//! everywhere: the key `kccm:storage` is what the keyring has as `kccm:storage:1`, `kccm:storage:2`
//! and so on, 0 to 255. The number goes with each segment (RFC 5925 calls it SendID and RecvID), so
//! a receiver knows which one to check it with.
//!
//! The highest number is the one to use. A node asks each peer to sign with it; a peer that has it
//! does, and one that has not goes on with the one before. So nobody has to be first, and only keys
//! that both have are ever used:
//!
//! ```text
//!   node A            node B
//!   has 1             has 1              both sign with 1
//!   has 1 2           has 1              A asks for 2, B does not know it: both sign with 1
//!   has 1 2           has 1 2            each asks for 2: both sign with 2
//!   has   2           has 1 2            A forgets 1, as B was seen to sign with 2
//! ```
//!
//! A key that is taken out of the keyring is not given to new connections. One that is connected
//! keeps it until neither side uses it ([`plan`]), whenever that is: nothing is disconnected.
//!
//! Who connects has to choose one key, and is not told if the other does not have it. It takes the
//! one that was used last with that peer, and when that fails the others in turn ([`Route`]).

use crate::config::KeyName;
use crate::sys::clock::Millis;
use crate::sys::keys;
use crate::sys::keys::{
    Secret,
    MAX_SECRET, //
};
use crate::sys::sock::{
    Dropped,
    KeyUse,
    MAX_KEYS, //
};
use kernel::alloc::AllocError;
use kernel::fmt;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Arc;

/// The shortest secret, bytes: as many as the signatures have at least the strength of.
pub(crate) const MIN_SECRET: usize = 16;

/// How many keys a cluster has at once. A connection can have others that are on their way out.
pub(crate) const MAX_AT_ONCE: usize = 8;

/// Numbers of keys.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ids([u64; 4]);

impl Ids {
    /// Enters one.
    pub(crate) fn insert(&mut self, id: u8) {
        self.0[usize::from(id / 64)] |= 1 << (id % 64);
    }

    fn remove(&mut self, id: u8) {
        self.0[usize::from(id / 64)] &= !(1 << (id % 64));
    }

    /// Whether it is there.
    pub(crate) fn contains(&self, id: u8) -> bool {
        self.0[usize::from(id / 64)] & (1 << (id % 64)) != 0
    }

    /// All of them, ascending.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = u8> + '_ {
        (0..=u8::MAX).filter(|&id| self.contains(id))
    }

    /// The key to use.
    pub(crate) fn newest(&self) -> Option<u8> {
        self.iter().next_back()
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn without(mut self, other: &Self) -> Self {
        for id in other.iter() {
            self.remove(id);
        }
        self
    }
}

impl FromIterator<u8> for Ids {
    fn from_iter<I: IntoIterator<Item = u8>>(ids: I) -> Self {
        let mut all = Self::default();
        for id in ids {
            all.insert(id);
        }
        all
    }
}

/// The numbers with a blank between them.
impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gap = "";
        for id in self.iter() {
            f.write_fmt(fmt!("{gap}{id}"))?;
            gap = " ";
        }
        Ok(())
    }
}

// ---- Where keys come from.

/// Something that has keys by description: the kernel's key service.
pub(crate) trait Source: Send + Sync {
    /// The key of that description, `None` when there is none.
    fn find(&self, description: &CStr) -> Result<Option<Secret>>;
}

/// The keyrings of whoever calls: of the process that loads the module, or that writes to sysfs.
pub(crate) struct Keyrings;

impl Source for Keyrings {
    fn find(&self, description: &CStr) -> Result<Option<Secret>> {
        keys::find(description)
    }
}

/// One key. Copies share the secret.
#[derive(Clone)]
pub(crate) struct Key {
    /// Its number.
    pub(crate) id: u8,
    /// Its secret.
    pub(crate) secret: Arc<Secret>,
}

/// The keys of the cluster, by ascending number. There is one at least.
pub(crate) struct Keys(KVec<Key>);

impl Keys {
    /// Looks for all of them.
    pub(crate) fn load(name: &KeyName, source: &dyn Source) -> Result<Self, Trouble> {
        let mut keys = KVec::new();
        let mut stale = None;
        for id in 0..=u8::MAX {
            let trouble = |what| Trouble::Bad { id, what };
            let description = CString::try_from_fmt(fmt!("{name}:{id}"))?;
            let secret = match source.find(&description) {
                Ok(None) => continue,
                Ok(Some(secret)) => secret,
                // As if it had been removed.
                Err(e) if e == EKEYEXPIRED || e == EKEYREVOKED => {
                    stale = Some(trouble(Flaw::Error(e)));
                    continue;
                }
                Err(e) if e == EMSGSIZE => return Err(trouble(Flaw::Long)),
                Err(e) => return Err(trouble(Flaw::Error(e))),
            };
            if secret.bytes().len() < MIN_SECRET {
                return Err(trouble(Flaw::Short(secret.bytes().len())));
            }
            if keys.len() == MAX_AT_ONCE {
                return Err(Trouble::Many);
            }
            let secret = Arc::new(secret, GFP_KERNEL)?;
            keys.push(Key { id, secret }, GFP_KERNEL)?;
        }
        if keys.is_empty() {
            return Err(stale.unwrap_or(Trouble::Missing));
        }
        Ok(Self(keys))
    }

    /// The keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Key> {
        self.0.iter()
    }

    /// One of them.
    pub(crate) fn get(&self, id: u8) -> Option<&Key> {
        self.iter().find(|key| key.id == id)
    }

    /// Their numbers.
    pub(crate) fn ids(&self) -> Ids {
        self.iter().map(|key| key.id).collect()
    }

    /// Whether these can take the place of `old`, while connections may still have some of `former`.
    pub(crate) fn may_follow(&self, old: &Self, former: &[Key]) -> Result<(), Trouble> {
        for key in self.iter() {
            let other = |k: &Key| k.id == key.id && *k.secret != *key.secret;
            let bad = |what| Trouble::Bad { id: key.id, what };
            if old.iter().any(other) {
                return Err(bad(Flaw::Changed));
            }
            if former.iter().any(other) {
                return Err(bad(Flaw::InUse));
            }
        }
        Ok(())
    }
}

/// Why there are no keys, or not those that were looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trouble {
    /// There is none.
    Missing,
    /// There are too many.
    Many,
    /// One is not as it should be.
    Bad {
        /// Which.
        id: u8,
        /// What is wrong with it.
        what: Flaw,
    },
    /// The kernel cannot sign.
    NoTcpAo,
    /// Not enough memory.
    NoMemory,
}

/// What is wrong with a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flaw {
    /// Its secret has only so many bytes.
    Short(usize),
    /// Its secret is too long.
    Long,
    /// It has another secret than it had before.
    Changed,
    /// The same, and a connection still needs the secret that it had before.
    InUse,
    /// The key service says that it cannot be used.
    Error(Error),
}

impl From<AllocError> for Trouble {
    fn from(_: AllocError) -> Self {
        Trouble::NoMemory
    }
}

impl From<Error> for Trouble {
    fn from(_: Error) -> Self {
        Trouble::NoMemory
    }
}

impl Trouble {
    /// What to return for it.
    pub(crate) fn error(&self) -> Error {
        match self {
            Trouble::Missing => ENOKEY,
            Trouble::Many => E2BIG,
            Trouble::Bad { what, .. } => match what {
                Flaw::Short(_) | Flaw::Long => EINVAL,
                Flaw::Changed => EKEYREJECTED,
                Flaw::InUse => EBUSY,
                Flaw::Error(error) => *error,
            },
            Trouble::NoTcpAo => EOPNOTSUPP,
            Trouble::NoMemory => ENOMEM,
        }
    }

    /// One line about it, of keys of that name.
    pub(crate) fn of<'a>(&'a self, name: &'a KeyName) -> impl fmt::Display + 'a {
        Line(self, name)
    }
}

struct Line<'a>(&'a Trouble, &'a KeyName);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.1;
        match self.0 {
            Trouble::Missing => f.write_fmt(fmt!(
                "key: no key {name}:0 to {name}:255 of type logon or user in the keyrings of this process"
            )),
            Trouble::Many => f.write_fmt(fmt!(
                "key: more than {MAX_AT_ONCE} keys of the name {name}; remove those that no node uses"
            )),
            Trouble::NoTcpAo => {
                f.write_str("key: this kernel has no TCP-AO (CONFIG_TCP_AO)")
            }
            Trouble::NoMemory => f.write_str("key: out of memory"),
            Trouble::Bad { id, what } => {
                f.write_fmt(fmt!("key: {name}:{id} "))?;
                match what {
                    Flaw::Short(len) => f.write_fmt(fmt!(
                        "has {len} bytes; it must have {MIN_SECRET} to {MAX_SECRET}"
                    )),
                    Flaw::Long => f.write_fmt(fmt!(
                        "has more than {MAX_SECRET} bytes; it must have {MIN_SECRET} to {MAX_SECRET}"
                    )),
                    Flaw::Changed => f.write_str(
                        "has another secret than before; a new secret needs a new number",
                    ),
                    Flaw::InUse => f.write_str(
                        "has another secret than one that a connection still uses; take another number",
                    ),
                    Flaw::Error(e) if *e == EKEYEXPIRED => f.write_str("has expired"),
                    Flaw::Error(e) if *e == EKEYREVOKED => f.write_str("was revoked"),
                    Flaw::Error(e) => f.write_fmt(fmt!("cannot be read: {e:?}")),
                }
            }
        }
    }
}

// ---- What a socket is to have.

/// How far a socket has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// It listens.
    Port,
    /// It is connecting.
    Dialing,
    /// It is connected.
    Open,
    /// Its keys do not matter any more.
    Closed,
}

/// What to do about the keys of a socket.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Keys to add, before all else.
    pub(crate) add: Ids,
    /// The key that the peer is to be asked to sign with.
    pub(crate) ask: Option<u8>,
    /// Keys to take away.
    pub(crate) forget: Ids,
    /// Whether more is to be done later, even if nothing is now.
    pub(crate) again: bool,
}

/// What brings a socket nearer to having the keys `wanted` and no other.
///
/// `before` is what an earlier look has found, and belongs to this function. A peer changes its key
/// only when it is asked to, and only to one that it is asked for; so when segments have come in since
/// the newest was asked for, all with the same key, it uses no other any more.
pub(crate) fn plan(wanted: &Ids, stage: Stage, now: &KeyUse, before: &mut Option<KeyUse>) -> Plan {
    let held: Ids = now.keys().iter().map(|&(id, _)| id).collect();
    let missing = wanted.without(&held);
    let room = MAX_KEYS - now.keys().len();
    let mut plan = Plan {
        // The highest are those that will be used.
        add: missing.iter().rev().take(room).collect(),
        ..Plan::default()
    };
    let surplus = held.without(wanted);
    plan.again = !missing.is_empty() || !surplus.is_empty();
    match stage {
        Stage::Port => plan.forget = surplus,
        Stage::Dialing => {}
        Stage::Closed => return Plan::default(),
        Stage::Open => {
            let newest = wanted.newest();
            let has = |id: &u8| held.contains(*id) || plan.add.contains(*id);
            if now.asks != newest {
                plan.ask = newest.filter(has);
                plan.again = true;
                *before = None;
            } else if let Some(earlier) = before {
                let count = |id| earlier.keys().iter().find(|&&(i, _)| i == id);
                let mut used = now
                    .keys()
                    .iter()
                    .filter(|&&(id, good)| good > count(id).map_or(0, |&(_, good)| good));
                if let (Some(&(peer_sends, _)), more) = (used.next(), used.next()) {
                    if more.is_none() {
                        let mut idle = surplus;
                        idle.remove(peer_sends);
                        for id in [now.sends, now.asks].into_iter().flatten() {
                            idle.remove(id);
                        }
                        plan.forget = idle;
                    }
                    *before = Some(*now);
                }
            } else {
                *before = Some(*now);
            }
        }
    }
    plan
}

// ---- Which key to connect with.

/// What is known of the way to one peer.
#[derive(Clone, Copy, Default)]
pub(crate) struct Route {
    last: Option<u8>,
    worked: bool,
    /// Why the last attempt came to nothing, if it did.
    pub(crate) verdict: Option<Verdict>,
}

impl Route {
    /// The key to sign the next attempt with.
    pub(crate) fn choose(&mut self, keys: &Ids) -> Option<u8> {
        let known = self.last.filter(|&id| keys.contains(id));
        let next = match known {
            Some(id) if self.worked => Some(id),
            Some(id) => keys.iter().rev().find(|&other| other < id),
            None => None,
        };
        self.last = next.or_else(|| keys.newest());
        self.worked = false;
        self.last
    }

    /// The connection is there, or has been, and was signed with that key at last.
    pub(crate) fn worked(&mut self, id: u8) {
        *self = Self {
            last: Some(id),
            worked: true,
            verdict: None,
        };
    }
}

/// Why an attempt to connect came to nothing, as far as the signatures tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Nothing came back.
    Silence,
    /// What came back was not signed: at best the news that nobody listens.
    NotSigned,
    /// What came back was signed with another secret.
    Mismatched,
    /// What came back was signed with a key of another number.
    Unknown,
}

impl Verdict {
    /// From what was dropped until the attempt was given up.
    pub(crate) fn new(dropped: &Dropped) -> Self {
        if dropped.mismatched > 0 {
            Verdict::Mismatched
        } else if dropped.unknown > 0 {
            Verdict::Unknown
        } else if dropped.not_signed > 0 {
            Verdict::NotSigned
        } else {
            Verdict::Silence
        }
    }

    /// The same in words.
    pub(crate) fn text(&self) -> &'static str {
        match self {
            Verdict::Silence => "no answer: it is not running, cut off, or has another key or none",
            Verdict::NotSigned => {
                "the answer was not signed: nobody listens there, or without a key"
            }
            Verdict::Mismatched => "the answer was signed with another secret",
            Verdict::Unknown => {
                "the answer was signed with a key of a number that is not known here"
            }
        }
    }
}

// ---- Who was not let in.

/// What is said of segments that were dropped, in the order of [`Dropped::counts`].
pub(crate) const FAULTS: [&str; 3] = [
    "not signed",
    "signed with another secret, or late",
    "signed with a key of a number that is not known here",
];

/// The same is said again after so long, milliseconds.
const REMIND: Millis = 60_000;

/// Who has no key tries again within so long, milliseconds. What comes once only can be the rest of a
/// connection that has ended: the kernel cannot check its signature any more.
const PERSISTS: Millis = 10_000;

/// What has been said of what a port has dropped.
#[derive(Default)]
pub(crate) struct Watch([Said; FAULTS.len()]);

#[derive(Clone, Copy, Default)]
struct Said {
    count: u64,
    risen: Option<Millis>,
    at: Option<Millis>,
}

impl Watch {
    /// From what has been dropped so far, what is to be reported now: each kind that there is more of
    /// and again more of, but not too often.
    pub(crate) fn news(&mut self, dropped: &Dropped, now: Millis) -> [bool; FAULTS.len()] {
        let mut news = [false; FAULTS.len()];
        let all = news.iter_mut().zip(&mut self.0).zip(dropped.counts());
        for ((new, said), count) in all {
            if count > said.count {
                let persists = said.risen.is_some_and(|at| now <= at + PERSISTS);
                *new = persists && said.at.is_none_or(|at| now >= at + REMIND);
                said.count = count;
                said.risen = Some(now);
            }
            if *new {
                said.at = Some(now);
            }
        }
        news
    }
}

#[cfg(KCCM_KUNIT)]
#[kunit_tests(kccm_ao)]
mod tests {
    use super::*;

    // ---- Looking for keys.

    /// A keyring: what there is under some numbers, 0 bytes meaning an error.
    struct Table(&'static [(u8, usize)], Error);

    impl Source for Table {
        fn find(&self, description: &CStr) -> Result<Option<Secret>> {
            for &(id, len) in self.0 {
                let ours = CString::try_from_fmt(fmt!("test:{id}"))?;
                if ours.to_bytes() == description.to_bytes() {
                    return match len {
                        0 => Err(self.1),
                        len => Secret::new(&[b's'; 100][..len]).map(Some),
                    };
                }
            }
            Ok(None)
        }
    }

    fn name() -> Result<KeyName> {
        KeyName::new("test").ok().flatten().ok_or(EINVAL)
    }

    fn load(keys: &'static [(u8, usize)], error: Error) -> Result<Result<Keys, Trouble>> {
        Ok(Keys::load(&name()?, &Table(keys, error)))
    }

    #[test]
    fn load_finds_all_numbers() -> Result {
        let keys = load(&[(7, 16), (0, 32), (255, 80)], EIO)?.map_err(|t| t.error())?;
        assert!(keys.iter().map(|key| key.id).eq([0, 7, 255]));
        assert_eq!(keys.ids().newest(), Some(255));
        assert_eq!(keys.get(7).ok_or(ENOENT)?.secret.bytes(), [b's'; 16]);
        assert!(keys.get(8).is_none());
        Ok(())
    }

    #[test]
    fn load_takes_8_keys_at_most() -> Result {
        const NINE: [(u8, usize); 9] = [
            (1, 20),
            (2, 20),
            (3, 20),
            (4, 20),
            (5, 20),
            (6, 20),
            (7, 20),
            (8, 20),
            (9, 20),
        ];
        assert!(load(&NINE[1..], EIO)?.is_ok());
        assert_eq!(load(&NINE, EIO)?.err(), Some(Trouble::Many));
        Ok(())
    }

    /// Every way in which keys can be wrong has a line of its own.
    #[test]
    fn load_says_what_is_wrong() -> Result {
        let missing = "key: no key test:0 to test:255 of type logon or user in the keyrings of \
                       this process";
        type Case = (&'static [(u8, usize)], Error, Error, &'static str);
        let cases: [Case; 6] = [
            (&[], EIO, ENOKEY, missing),
            (
                &[(3, 15)],
                EIO,
                EINVAL,
                "key: test:3 has 15 bytes; it must have 16 to 80",
            ),
            (
                &[(3, 0)],
                EMSGSIZE,
                EINVAL,
                "key: test:3 has more than 80 bytes; it must have 16 to 80",
            ),
            (
                &[(3, 0)],
                EKEYEXPIRED,
                EKEYEXPIRED,
                "key: test:3 has expired",
            ),
            (
                &[(3, 0)],
                EKEYREVOKED,
                EKEYREVOKED,
                "key: test:3 was revoked",
            ),
            // One that is of no use does not make up for another.
            (
                &[(3, 0), (4, 20)],
                EACCES,
                EACCES,
                "key: test:3 cannot be read: EACCES",
            ),
        ];
        for (keys, error, returned, line) in cases {
            let trouble = load(keys, error)?.err().ok_or(EINVAL)?;
            let shown = CString::try_from_fmt(fmt!("{}", trouble.of(&name()?)))?;
            if shown.to_bytes() != line.as_bytes() {
                pr_err!("\"{}\", not \"{line}\"\n", trouble.of(&name()?));
                return Err(EINVAL);
            }
            assert_eq!(trouble.error(), returned);
        }
        Ok(())
    }

    /// One that has expired is not there any more.
    #[test]
    fn load_leaves_out_what_has_expired() -> Result {
        for error in [EKEYEXPIRED, EKEYREVOKED] {
            let keys = load(&[(3, 0), (4, 20)], error)?.map_err(|t| t.error())?;
            assert!(keys.iter().map(|key| key.id).eq([4]));
        }
        Ok(())
    }

    fn key(id: u8, secret: &[u8]) -> Result<Key> {
        Ok(Key {
            id,
            secret: Arc::new(Secret::new(secret)?, GFP_KERNEL)?,
        })
    }

    fn keys(all: &[(u8, &[u8])]) -> Result<Keys> {
        let mut keys = KVec::new();
        for (id, secret) in all {
            keys.push(key(*id, secret)?, GFP_KERNEL)?;
        }
        Ok(Keys(keys))
    }

    #[test]
    fn new_secret_needs_a_new_number() -> Result {
        let old = keys(&[(1, b"one"), (2, b"two")])?;
        let bad = |id, what| Some(Trouble::Bad { id, what });
        assert!(keys(&[(1, b"one"), (3, b"3")])?
            .may_follow(&old, &[])
            .is_ok());
        let changed = keys(&[(1, b"one"), (2, b"too")])?.may_follow(&old, &[]);
        assert_eq!(changed.err(), bad(2, Flaw::Changed));
        // What is gone and not yet forgotten can come back, but only as it was.
        let former = [key(9, b"nine")?];
        assert!(keys(&[(9, b"nine")])?.may_follow(&old, &former).is_ok());
        let in_use = keys(&[(9, b"mine")])?.may_follow(&old, &former);
        assert_eq!(in_use.err(), bad(9, Flaw::InUse));
        Ok(())
    }

    #[test]
    fn numbers_are_a_set() -> Result {
        let mut ids = Ids::default();
        assert!(ids.is_empty() && ids.newest().is_none());
        for id in [200, 0, 63, 64, 255, 0] {
            ids.insert(id);
        }
        assert!(ids.iter().eq([0, 63, 64, 200, 255]));
        assert!((0..=255).all(|id| ids.contains(id) == [0, 63, 64, 200, 255].contains(&id)));
        let less = ids.without(&[64, 255, 3].into_iter().collect());
        assert!(less.iter().eq([0, 63, 200]));
        let shown = CString::try_from_fmt(fmt!("{less}"))?;
        assert_eq!(shown.to_bytes(), b"0 63 200");
        Ok(())
    }

    // ---- What a socket is to have.

    fn ids<const N: usize>(all: [u8; N]) -> Ids {
        all.into_iter().collect()
    }

    /// What a look finds: keys with their counts, and what is sent and asked for.
    fn look(keys: &[(u8, u64)], sends: u8, asks: u8) -> KeyUse {
        let mut look = KeyUse::new(Some(sends), Some(asks));
        for &(id, good) in keys {
            look.push(id, good);
        }
        look
    }

    fn nothing() -> Plan {
        Plan::default()
    }

    #[test]
    fn port_has_the_keys_and_no_other() {
        let mut before = None;
        let mut now = KeyUse::new(None, None);
        now.push(1, 5);
        now.push(2, 0);
        let plan = |wanted| super::plan(&wanted, Stage::Port, &now, &mut before);
        let mut plan = plan;
        assert!(plan(ids([1, 2])) == nothing());
        let expected = Plan {
            add: ids([3]),
            forget: ids([1]),
            again: true,
            ask: None,
        };
        assert!(plan(ids([2, 3])) == expected);
    }

    /// While it connects it only learns keys: what it has begun with it goes on with.
    #[test]
    fn dialing_keeps_its_key() {
        let now = look(&[(1, 0)], 1, 1);
        let expected = Plan {
            add: ids([2]),
            again: true,
            ..nothing()
        };
        assert!(plan(&ids([2]), Stage::Dialing, &now, &mut None) == expected);
        assert!(plan(&ids([1]), Stage::Dialing, &now, &mut None) == nothing());
        assert!(plan(&ids([2]), Stage::Closed, &now, &mut None) == nothing());
    }

    /// The whole way from key 1 to key 2, and what holds it up.
    #[test]
    fn open_forgets_what_neither_side_uses() {
        let (both, new) = (ids([1, 2]), ids([2]));
        let before = &mut None;
        // The new key comes in, and is asked for.
        let expected = Plan {
            add: new,
            ask: Some(2),
            again: true,
            ..nothing()
        };
        assert!(plan(&both, Stage::Open, &look(&[(1, 10)], 1, 1), before) == expected);
        assert!(plan(&both, Stage::Open, &look(&[(2, 0), (1, 20)], 1, 2), before) == nothing());
        // The old one goes from the keyring before the peer has the new one.
        let waits = Plan {
            again: true,
            ..nothing()
        };
        let mut sees =
            |keys: &[(u8, u64)], sends| plan(&new, Stage::Open, &look(keys, sends, 2), before);
        assert!(sees(&[(2, 0), (1, 30)], 1) == waits);
        assert!(sees(&[(2, 0), (1, 40)], 1) == waits);
        // The peer changes over; then we do.
        assert!(sees(&[(2, 5), (1, 41)], 1) == waits);
        assert!(sees(&[(2, 9), (1, 41)], 1) == waits);
        assert!(sees(&[(2, 9), (1, 41)], 2) == waits);
        let done = Plan {
            forget: ids([1]),
            again: true,
            ..nothing()
        };
        assert!(sees(&[(2, 10), (1, 41)], 2) == done);
        assert!(sees(&[(2, 10)], 2) == nothing());
    }

    /// The other way round: we sign with the new one first, the peer not yet.
    #[test]
    fn open_keeps_what_the_peer_signs_with() {
        let before = &mut None;
        let mut sees =
            |keys: &[(u8, u64)], asks| plan(&ids([2]), Stage::Open, &look(keys, 2, asks), before);
        assert!(sees(&[(1, 1), (2, 0)], 1).ask == Some(2));
        for count in 2..5 {
            assert!(sees(&[(1, count), (2, 0)], 2).forget.is_empty());
        }
        // Nothing has come in: nothing is known.
        assert!(sees(&[(1, 4), (2, 0)], 2).forget.is_empty());
        assert!(sees(&[(1, 4), (2, 1)], 2).forget == ids([1]));
    }

    /// Of several old ones those go that neither side uses; a new old one is no sign of life.
    #[test]
    fn open_forgets_one_by_one() {
        let before = &mut None;
        let mut sees = |wanted, keys: &[(u8, u64)], sends| {
            plan(&wanted, Stage::Open, &look(keys, sends, 9), before).forget
        };
        assert!(sees(ids([9]), &[(1, 0), (2, 5), (3, 0), (9, 0)], 3).is_empty());
        // The peer signs with 2, we with 3.
        assert!(sees(ids([9]), &[(1, 0), (2, 6), (3, 0), (9, 0)], 3) == ids([1]));
        assert!(sees(ids([9]), &[(2, 6), (3, 0), (9, 0)], 9).is_empty());
        assert!(sees(ids([4, 9]), &[(4, 0), (2, 6), (3, 0), (9, 0)], 9).is_empty());
        assert!(sees(ids([4, 9]), &[(4, 0), (2, 6), (3, 0), (9, 1)], 9) == ids([2, 3]));
    }

    /// Asking anew begins anew.
    #[test]
    fn open_does_not_judge_by_what_was_before() {
        let before = &mut None;
        let mut sees = |wanted, keys: &[(u8, u64)], asks| {
            plan(&wanted, Stage::Open, &look(keys, 1, asks), before)
        };
        assert!(sees(ids([3]), &[(1, 0), (2, 0), (3, 0)], 3)
            .forget
            .is_empty());
        // Another one is the newest now.
        let next = sees(ids([4]), &[(1, 0), (2, 1), (3, 0)], 3);
        assert!(next.add == ids([4]) && next.ask == Some(4) && next.forget.is_empty());
        assert!(sees(ids([4]), &[(1, 0), (2, 2), (3, 0), (4, 0)], 4)
            .forget
            .is_empty());
        assert!(sees(ids([4]), &[(1, 0), (2, 3), (3, 0), (4, 0)], 4).forget == ids([3]));
    }

    /// A socket takes no more than it can.
    #[test]
    fn open_takes_the_newest_when_there_is_no_room() {
        let mut now = look(&[], 100, 100);
        for id in 100..100 + MAX_KEYS as u8 - 2 {
            now.push(id, 0);
        }
        let plan = plan(&ids([1, 2, 3]), Stage::Open, &now, &mut None);
        assert!(plan.add == ids([2, 3]) && plan.ask == Some(3) && plan.again);
    }

    /// From any state, with any peer, a connection ends up with the newest key and no other once both
    /// have it, and is never without a key that one of them signs with.
    #[test]
    fn random_rotations_end_well() -> Result {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        for _ in 0..300 {
            let mut ends = [End::new()?, End::new()?];
            let mut top = 1;
            for step in 0..200 {
                // The keyrings change, in any order; in the end they are the same.
                let i = draw(2) as usize;
                match draw(8) {
                    0 if step < 100 && top < 250 => {
                        top += 1;
                        ends[i].wanted = ids([top - 1, top]);
                    }
                    1 if step < 100 => ends[i].wanted = ids([top]),
                    2..=4 => ends[i].look_after(),
                    _ => {
                        let [a, b] = &mut ends;
                        let (from, to) = if i == 0 { (a, b) } else { (b, a) };
                        assert!(from.send(to));
                    }
                }
                if step == 100 {
                    for end in &mut ends {
                        end.wanted = ids([top]);
                    }
                }
            }
            for end in &ends {
                let held: Ids = end.now.keys().iter().map(|k| k.0).collect();
                assert!(held == ids([top]));
            }
        }
        Ok(())
    }

    /// One end of a connection, with the kernel's part of it.
    struct End {
        wanted: Ids,
        now: KeyUse,
        before: Option<KeyUse>,
    }

    impl End {
        fn new() -> Result<Self> {
            Ok(Self {
                wanted: ids([1]),
                now: look(&[(1, 0)], 1, 1),
                before: None,
            })
        }

        fn look_after(&mut self) {
            let plan = plan(&self.wanted, Stage::Open, &self.now, &mut self.before);
            let mut next = KeyUse::new(self.now.sends, plan.ask.or(self.now.asks));
            for &(id, good) in self.now.keys() {
                let used = [next.sends, next.asks].contains(&Some(id));
                if used || !plan.forget.contains(id) {
                    next.push(id, good);
                }
            }
            for id in plan.add.iter() {
                next.push(id, 0);
            }
            self.now = next;
        }

        fn has(&self, id: Option<u8>) -> bool {
            self.now.keys().iter().any(|&(held, _)| Some(held) == id)
        }

        /// Sends a segment; whether the other end could check it.
        fn send(&self, to: &mut Self) -> bool {
            let mut next = KeyUse::new(to.now.sends, to.now.asks);
            for &(id, good) in to.now.keys() {
                next.push(id, good + u64::from(Some(id) == self.now.sends));
            }
            if to.has(self.now.asks) {
                next.sends = self.now.asks;
            }
            let known = to.has(self.now.sends);
            to.now = next;
            known
        }
    }

    // ---- Which key to connect with.

    #[test]
    fn route_takes_what_was_used_last() {
        let both = ids([1, 2]);
        let mut route = Route::default();
        // At first the newest, and then each in turn.
        assert_eq!(route.choose(&both), Some(2));
        assert_eq!(route.choose(&both), Some(1));
        assert_eq!(route.choose(&both), Some(2));
        assert_eq!(route.choose(&both), Some(1));
        // One that works is used again, whatever comes.
        route.worked(1);
        assert_eq!(route.choose(&ids([1, 2, 3])), Some(1));
        // It has failed.
        assert_eq!(route.choose(&ids([1, 2, 3])), Some(3));
        assert_eq!(route.choose(&ids([1, 2, 3])), Some(2));
        assert_eq!(route.choose(&ids([1, 2, 3])), Some(1));
        // Unless it is no more.
        route.worked(1);
        assert_eq!(route.choose(&ids([2, 3])), Some(3));
    }

    // ---- What there is to say.

    #[test]
    fn verdict_is_from_what_came_back() {
        let dropped = |not_signed, mismatched, unknown| Dropped {
            not_signed,
            mismatched,
            unknown,
        };
        let verdict = |dropped| Verdict::new(&dropped);
        assert!(verdict(dropped(0, 0, 0)) == Verdict::Silence);
        assert!(verdict(dropped(1, 0, 0)) == Verdict::NotSigned);
        assert!(verdict(dropped(1, 1, 1)) == Verdict::Mismatched);
        assert!(verdict(dropped(1, 0, 1)) == Verdict::Unknown);
    }

    #[test]
    fn news_is_told_when_it_persists_and_once_a_minute() {
        let mut watch = Watch::default();
        let mut news = |count, other, now| {
            let dropped = Dropped {
                not_signed: count,
                mismatched: other,
                unknown: 0,
            };
            watch.news(&dropped, now)
        };
        const NONE: [bool; 3] = [false; 3];
        const FIRST: [bool; 3] = [true, false, false];
        const SECOND: [bool; 3] = [false, true, false];
        assert_eq!(news(0, 0, 0), NONE);
        // Not at the first time, nor when the next one comes much later.
        assert_eq!(news(2, 0, 1000), NONE);
        assert_eq!(news(2, 0, 2000), NONE);
        assert_eq!(news(3, 0, 11_001), NONE);
        assert_eq!(news(4, 0, 21_001), FIRST);
        assert_eq!(news(5, 1, 22_000), NONE);
        assert_eq!(news(6, 2, 23_000), SECOND);
        assert_eq!(news(7, 2, 80_000), NONE);
        assert_eq!(news(8, 2, 81_000), NONE);
        assert_eq!(news(9, 3, 81_001), FIRST);
        assert_eq!(news(9, 4, 83_000), SECOND);
        assert_eq!(news(9, 4, 1_000_000), NONE);
    }
}
