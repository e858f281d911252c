// SPDX-License-Identifier: GPL-2.0

//! Whatever connections do, what one end of a session pushes is delivered at the other exactly once
//! and in order, what is delivered is acknowledged in time, and nothing is kept that need not be. A
//! peer that acknowledges what it cannot have is found out.

use crate::conn::inbox::{
    Due,
    Inbox,
    Verdict,
    DELAY, //
};
use crate::conn::outbox::{
    Outbox,
    Violation, //
};
use crate::script::Script;
use crate::sys::clock::Millis;
use core::cell::Cell;
use kernel::list::{
    List,
    ListArc, //
};
use std::collections::VecDeque;
use std::rc::Rc;

/// More is not pushed: some times what is acknowledged at once.
const MOST: u64 = 1100;

/// So much is acknowledged at once: bytes, frames.
const AT_ONCE: (u64, u64) = (1 << 20, 1024);

/// A frame that is no more than its number, and counts itself.
pub(crate) struct OutFrame {
    seq: Cell<u64>,
    alive: Rc<Cell<usize>>,
}

impl OutFrame {
    fn new(alive: &Rc<Cell<usize>>) -> ListArc<Self> {
        alive.set(alive.get() + 1);
        ListArc::new(Self {
            seq: Cell::new(0),
            alive: alive.clone(),
        })
    }

    pub(crate) fn seq(&self) -> u64 {
        self.seq.get()
    }

    pub(crate) fn set_seq(&self, seq: u64) {
        self.seq.set(seq);
    }
}

impl Drop for OutFrame {
    fn drop(&mut self) {
        self.alive.set(self.alive.get() - 1);
    }
}

/// The sending end, with what its connection has of it.
struct Sender {
    outbox: Outbox,
    alive: Rc<Cell<usize>>,
    pushed: u64,
    acked: u64,
    /// The number of the first frame that waits.
    first: u64,
    /// With the connection, not sent whole.
    unsent: VecDeque<ListArc<OutFrame>>,
}

impl Sender {
    fn new() -> Self {
        Self {
            outbox: Outbox::new(),
            alive: Rc::new(Cell::new(0)),
            pushed: 0,
            acked: 0,
            first: 1,
            unsent: VecDeque::new(),
        }
    }

    fn push(&mut self) {
        if self.pushed == MOST {
            return;
        }
        self.pushed += 1;
        let seq = self.outbox.push(OutFrame::new(&self.alive));
        assert_eq!(seq, self.pushed);
    }

    /// Gives the connection a frame.
    fn fill(&mut self) -> Option<u64> {
        let frame = self.outbox.fill();
        let seq = frame.as_ref().map(|frame| frame.seq());
        assert_eq!(seq, (self.first <= self.pushed).then_some(self.first));
        self.first += u64::from(seq.is_some());
        self.unsent.extend(frame);
        seq
    }

    /// The first frame that the connection has is sent whole.
    fn sent(&mut self) {
        if let Some(frame) = self.unsent.pop_front() {
            let seq = frame.seq();
            let back = self.outbox.sent(frame);
            assert_eq!(back.is_some(), seq <= self.acked);
        }
    }

    /// What is gone is exactly what is acknowledged.
    fn forget(&mut self, gone: List<OutFrame>) {
        assert!(gone.into_iter().all(|frame| frame.seq() <= self.acked));
    }

    fn hear(&mut self, ack: u64) -> Result<(), Violation> {
        let gone = self.outbox.acknowledge(ack)?;
        self.acked = self.acked.max(ack);
        self.forget(gone);
        Ok(())
    }

    /// The connection is gone.
    fn put_back(&mut self) {
        while let Some(frame) = self.unsent.pop_back() {
            self.first = frame.seq();
            self.outbox.put_back(frame);
        }
    }

    fn resume(&mut self, received: u64) -> Result<(), Violation> {
        let gone = self.outbox.resume(received)?;
        self.acked = received;
        self.first = received + 1;
        self.forget(gone);
        Ok(())
    }

    fn check(&self) {
        assert_eq!(self.outbox.acked(), self.acked);
        // Those that are acknowledged after all when they are to be sent again, or while the
        // connection has them, are kept until they are sent.
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let least = size(self.pushed - self.acked);
        let late = size((self.acked + 1).saturating_sub(self.first))
            + self
                .unsent
                .iter()
                .take_while(|f| f.seq() <= self.acked)
                .count();
        assert!(self.alive.get() >= least, "a frame is lost");
        assert!(
            self.alive.get() <= least + late,
            "a frame is kept for nothing"
        );
    }
}

/// Both ends, and what is on its way between them.
struct Session {
    sender: Sender,
    inbox: Inbox,
    now: Millis,
    /// Delivered.
    delivered: u64,
    /// When the first of what nobody has been told of was delivered.
    owed_since: Option<Millis>,
    /// How much that is: bytes, frames.
    owed: (u64, u64),
    /// When somebody looks whether an acknowledgement is due.
    alarm: Option<Millis>,
    frames: VecDeque<u64>,
    acks: VecDeque<u64>,
}

impl Session {
    fn new(now: Millis) -> Self {
        Self {
            sender: Sender::new(),
            inbox: Inbox::new(),
            now,
            delivered: 0,
            owed_since: None,
            owed: (0, 0),
            alarm: None,
            frames: VecDeque::new(),
            acks: VecDeque::new(),
        }
    }

    fn send(&mut self) {
        let frame = self.sender.fill();
        self.frames.extend(frame);
    }

    fn receive(&mut self, len: u64) {
        let Some(seq) = self.frames.pop_front() else {
            return;
        };
        match self.inbox.judge(seq) {
            Verdict::Next => {
                self.delivered += 1;
                assert_eq!(seq, self.delivered, "out of order");
                self.owed_since = self.owed_since.or(Some(self.now));
                self.owed = (self.owed.0 + len, self.owed.1 + 1);
                let much = self.owed.0 >= AT_ONCE.0 || self.owed.1 >= AT_ONCE.1;
                let due = self.inbox.deliver(seq, len, || self.now);
                assert_eq!(due == Due::Now, much);
                match due {
                    Due::Now => self.acknowledge(),
                    Due::Later => self.alarm = Some(self.now),
                    Due::Pending => {}
                }
            }
            Verdict::Duplicate => assert!(seq <= self.delivered, "{seq} is dropped"),
            Verdict::Gap => panic!("{seq} after {}", self.delivered),
        }
    }

    fn acknowledge(&mut self) {
        let ack = self.inbox.tell();
        assert_eq!(ack, self.delivered);
        (self.owed_since, self.owed) = (None, (0, 0));
        self.acks.push_back(ack);
    }

    fn hear(&mut self) {
        if let Some(ack) = self.acks.pop_front() {
            assert_eq!(self.sender.hear(ack), Ok(()), "of an honest receiver");
        }
    }

    /// Looks whether an acknowledgement is due, and if not yet, when to look again.
    fn look(&mut self) {
        self.alarm = None;
        match self.inbox.is_due(self.now) {
            Ok(true) => {
                let early = self.owed_since.is_none_or(|since| self.now < since + DELAY);
                assert!(!early, "an acknowledgement is early");
                self.acknowledge();
            }
            Ok(false) => {}
            Err(due) => self.alarm = Some(due),
        }
    }

    /// Time goes by.
    fn wait(&mut self, ms: Millis) {
        let until = self.now + ms;
        while let Some(alarm) = self.alarm.filter(|&alarm| alarm <= until) {
            self.now = self.now.max(alarm);
            self.look();
        }
        self.now = until;
        let late = self
            .owed_since
            .is_some_and(|since| since + DELAY <= self.now);
        assert!(!late, "an acknowledgement is late");
    }

    /// The connection breaks, and another is made. Where the receiver stands is told some frames
    /// before the last connection is dead for it. Of those the sender may hear over the new one
    /// `before` it has seen to what it has in hand for the old one.
    fn reconnect(&mut self, still_received: u8, before: bool) {
        let received = self.inbox.received();
        for _ in 0..still_received {
            self.receive(0);
        }
        self.frames.clear();
        self.acks.clear();
        assert!(self.sender.outbox.can_resume(received));
        if before {
            self.acknowledge();
            self.hear();
        }
        self.sender.put_back();
        let received = received.max(self.sender.acked);
        assert_eq!(
            self.sender.resume(received),
            Ok(()),
            "of an honest receiver"
        );
    }

    fn check(&self) {
        self.sender.check();
        assert_eq!(self.inbox.received(), self.delivered);
        assert_eq!(self.inbox.owes(), self.owed_since.is_some());
    }

    /// Everything gets there and is acknowledged, and nothing is kept any more.
    fn settle(&mut self) {
        while !self.sender.outbox.is_idle() {
            self.send();
        }
        while !self.sender.unsent.is_empty() {
            self.sender.sent();
        }
        while !self.frames.is_empty() {
            self.receive(1);
        }
        self.wait(DELAY);
        while !self.acks.is_empty() {
            self.hear();
        }
        self.check();
        assert_eq!(self.delivered, self.sender.pushed);
        assert!(!self.inbox.owes());
        // Over a new connection, so that the last that was told has arrived.
        self.reconnect(0, false);
        assert_eq!(self.sender.alive.get(), 0, "something is kept for ever");
    }
}

fn honest(script: &mut Script<'_>) {
    let mut session = Session::new(1 + (script.number() >> 1));
    while script.more() {
        match script.u8() % 10 {
            0 => session.sender.push(),
            1 => session.send(),
            2 => session.sender.sent(),
            3 => session.receive(script.u32().into()),
            4 => session.acknowledge(),
            5 => session.hear(),
            6 => session.wait(script.u8().into()),
            7 => session.reconnect(script.u8(), script.bit()),
            8 => session.look(),
            // Many at once.
            _ => {
                for _ in 0..script.u8() % 64 {
                    session.sender.push();
                    session.send();
                }
            }
        }
        session.check();
    }
    session.settle();
}

/// A peer that says it has what it likes.
fn hostile(script: &mut Script<'_>) {
    let mut sender = Sender::new();
    let mut offered = 0;
    while script.more() {
        match script.u8() % 6 {
            0 => sender.push(),
            1 => offered = sender.fill().unwrap_or(0).max(offered),
            2 => sender.sent(),
            3 => {
                let ack = script.number();
                assert_eq!(sender.hear(ack).is_ok(), ack <= offered);
            }
            4 => {
                let received = script.number();
                let possible = (sender.acked..=offered).contains(&received);
                assert_eq!(sender.outbox.can_resume(received), possible);
                sender.put_back();
                assert_eq!(sender.resume(received).is_ok(), possible);
                if !possible {
                    // Nobody goes on with it.
                    break;
                }
            }
            _ => {
                let inbox = Inbox::new();
                let seq = script.number();
                let right = match seq {
                    0 => Verdict::Duplicate,
                    1 => Verdict::Next,
                    _ => Verdict::Gap,
                };
                assert_eq!(inbox.judge(seq), right);
            }
        }
        sender.check();
    }
    sender.put_back();
    drop(sender.outbox.clear());
    assert_eq!(sender.alive.get(), 0, "something is not given back");
}

pub(crate) fn run(input: &[u8]) {
    let mut script = Script::new(input);
    match script.bit() {
        true => honest(&mut script),
        false => hostile(&mut script),
    }
}
