// SPDX-License-Identifier: GPL-2.0

//! The sending side of a session: frames that wait, and who sends them over which connection.
//!
//! Whoever queues a frame sends it, and with it all that waits, unless somebody else is at it
//! already: then that one sends it too. So an uncontended frame leaves in the context of its
//! caller, and under contention frames are sent in batches. Nobody waits for room in the link: when
//! there is none, the rest is sent by the listener, which the link then calls.
//!
//! While the listener reads a long payload, it has the link's lock for most of the time, and takes
//! it again before anybody who waits for it has woken up. Frames are left to it then, to be sent
//! between two reads: whoever sent them himself would wait for the lock, and others, whose frames he
//! has taken along, for him.
//!
//! Frames that follow one right after the other, with nothing coming back in between, would each
//! become a packet of their own, for TCP does not know that there are more. So those that nobody
//! waits for are left to the listener, which is woken, or to the frame that makes them worth sending,
//! whichever comes first: see [`Pace`].
//!
//! What is sequenced is in the [`Outbox`] and outlives connections; control frames are only for the
//! connection that they were meant for. When a connection takes the place of another, whoever is
//! sending at that moment has frames of the outbox in hand, and sees to the change when the link
//! has returned.

use super::credit::Lane;
use super::frame::{
    copied,
    Header,
    Numbers,
    FEW,
    HEADER_LEN, //
};
use super::inbox::Inbox;
use super::outbox::{
    Outbox,
    Violation, //
};
use super::peer::{
    Charge,
    Kept, //
};
use super::transport::{
    Within,
    MAX_BUFS, //
};
use super::Conn;
use crate::sys::clock;
use crate::sys::lock::{
    new_spinlock_bh,
    SpinLockBh,
    SpinLockBhGuard, //
};
use crate::sys::pages::{
    Jotter,
    Pages,
    Part,
    Spare, //
};
use kernel::alloc::flags::__GFP_NOWARN;
use kernel::alloc::Flags;
use kernel::list::{
    impl_list_arc_safe,
    impl_list_item,
    List,
    ListArc,
    ListLinks, //
};
use kernel::page::PAGE_SIZE;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::{
    Arc,
    ArcBorrow,
    UniqueArc, //
};

/// For how many bytes pages are kept to be used again.
const SPARE_MAX: usize = 1 << 20;

/// The most bytes of any memory that may be allocated in an upcall at one go: where there is no block
/// for more, the allocator goes on to virtual memory, which is not to be had there.
pub(crate) const UPCALL_MAX: usize = PAGE_SIZE;

/// A payload that is kept with its frame.
pub(crate) enum Store {
    /// In memory of any kind.
    Heap(KVVec<u8>),
    /// In pages.
    Pages(Pages),
}

impl Store {
    /// A copy of some bytes. Process context.
    fn copied(bytes: &[u8], urgency: Urgency, tx: &Tx) -> Result<Self> {
        if bytes.len() >= urgency.pages_from() {
            let spare = tx.spare(bytes.len());
            if let Some(pages) = spare.and_then(|spare| spare.copied(bytes)) {
                return Ok(Store::Pages(pages));
            }
            if let Ok(pages) = Pages::copied(bytes, GFP_KERNEL) {
                return Ok(Store::Pages(pages));
            }
        }
        Ok(Store::Heap(copied(bytes)?))
    }

    /// So many bytes, to be written, for whoever works `via`: zeros, or what the other side has been
    /// sent before.
    fn room(len: usize, via: Via<'_>, tx: &Tx) -> Result<Self> {
        let flags = via.flags();
        let in_thread = matches!(via, Via::Thread);
        if len >= Urgency::Now.pages_from() || len > UPCALL_MAX && !in_thread {
            if let Some(pages) = tx.spare(len).and_then(|spare| spare.reused(len)) {
                return Ok(Store::Pages(pages));
            }
            match Pages::zeroed(len, flags) {
                Ok(pages) => return Ok(Store::Pages(pages)),
                Err(e) if !in_thread => return Err(e),
                Err(_) => {}
            }
        }
        Ok(Store::Heap(KVVec::from_elem(0, len, flags)?))
    }

    fn len(&self) -> usize {
        match self {
            Store::Heap(bytes) => bytes.len(),
            Store::Pages(pages) => pages.len(),
        }
    }

    /// The bytes of one that was made by [`Tx::room`].
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            Store::Heap(bytes) => &mut bytes[..],
            Store::Pages(pages) => pages.as_mut_slice().unwrap_or(&mut []),
        }
    }

    /// Its pages, if they are to be used again.
    fn into_spare(self) -> Option<Spare> {
        match self {
            Store::Heap(_) => None,
            Store::Pages(pages) => pages.into_spare(),
        }
    }

    /// Only the first `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        match self {
            Store::Heap(bytes) => bytes.truncate(len),
            Store::Pages(pages) => pages.truncate(len),
        }
    }
}

/// A payload on its way into a frame.
pub(crate) enum Payload<'a> {
    /// At most [`FEW`] bytes, to be copied.
    Few(&'a [u8]),
    /// Any number.
    Many(Store),
}

impl Payload<'_> {
    /// Its length.
    pub(crate) fn len(&self) -> usize {
        match self {
            Payload::Few(bytes) => bytes.len(),
            Payload::Many(store) => store.len(),
        }
    }
}

/// A frame on its way out.
#[pin_data]
pub(crate) struct OutFrame {
    header: Header,
    seq: Atomic<u64>,
    /// What it acknowledges, as it was when it was last given to a connection.
    ack: Atomic<u64>,
    /// The payload: its length, and few bytes in place.
    len: usize,
    few: [u8; FEW],
    many: Store,
    /// What is released when it is no longer needed: for a reply, its call.
    _charge: Option<Charge>,
    /// For others, the room that they take.
    kept: Option<Kept>,
    #[pin]
    links: ListLinks,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for OutFrame { untracked; }
}
impl_list_item! {
    impl ListItem<0> for OutFrame { using ListLinks { self.links }; }
}

/// Memory for a frame, which can then be made without fail.
pub(crate) struct Blank(UniqueArc<core::mem::MaybeUninit<OutFrame>>);

impl Blank {
    /// Memory for one frame.
    pub(crate) fn new(flags: Flags) -> Result<Self> {
        Ok(Self(UniqueArc::new_uninit(flags)?))
    }

    /// The frame. `charge`, `kept`: what is given back when it is no longer needed.
    #[inline]
    pub(crate) fn fill(
        self,
        header: Header,
        payload: Payload<'_>,
        charge: Option<Charge>,
        kept: Option<Kept>,
    ) -> ListArc<OutFrame> {
        let len = payload.len();
        let (few, many) = match payload {
            Payload::Few(bytes) => (bytes, Store::Heap(KVVec::new())),
            Payload::Many(bytes) => (&[][..], bytes),
        };
        let frame = self.0.pin_init_with(pin_init!(OutFrame {
            header,
            seq: Atomic::new(0),
            ack: Atomic::new(0),
            len,
            few: [0; FEW],
            many,
            _charge: charge,
            kept,
            links <- ListLinks::new(),
        }));
        match frame {
            Ok(mut frame) => {
                // In place: moving them there would cost more than they do.
                frame.as_mut().project().few[..few.len()].copy_from_slice(few);
                ListArc::from(frame)
            }
            Err(never) => match never {},
        }
    }
}

impl OutFrame {
    /// A control frame.
    pub(crate) fn control(header: Header) -> Result<ListArc<Self>> {
        Ok(Blank::new(GFP_KERNEL)?.fill(header, Payload::Few(&[]), None, None))
    }

    /// The total that it grants, 0 if it is no grant.
    fn limit(&self) -> u64 {
        match self.header {
            Header::Credit { limit, .. } => limit,
            _ => 0,
        }
    }

    /// Its number, 0 if it has none.
    pub(crate) fn seq(&self) -> u64 {
        self.seq.load(Relaxed)
    }

    /// Gives it its number.
    pub(crate) fn set_seq(&self, seq: u64) {
        self.seq.store(seq, Relaxed);
    }

    fn len(&self) -> usize {
        HEADER_LEN + self.len
    }

    /// The payload, but for what is in pages.
    fn payload(&self) -> &[u8] {
        match &self.many {
            Store::Heap(bytes) if bytes.is_empty() => &self.few[..self.len],
            Store::Heap(bytes) => bytes,
            Store::Pages(_) => &[],
        }
    }

    /// What of it is in pages.
    fn pages(&self) -> Option<&Pages> {
        match &self.many {
            // Nothing follows a header whose payload was cut off whole.
            Store::Pages(pages) if self.len > 0 => Some(pages),
            Store::Heap(_) | Store::Pages(_) => None,
        }
    }

    fn header(&self) -> [u8; HEADER_LEN] {
        self.header.encode(Numbers {
            seq: self.seq(),
            ack: self.ack.load(Relaxed),
        })
    }
}

/// Drops frames that have been acknowledged, and gives back the room of all of them at once. Returns
/// pages of theirs that can be used again.
fn let_go(mut frames: List<OutFrame>) -> Option<Spare> {
    let mut room: Option<Kept> = None;
    let mut spare = None;
    while let Some(frame) = frames.pop_front() {
        let Some(mut frame) = Arc::into_unique_or_drop(frame.into_arc()) else {
            continue;
        };
        let frame = frame.as_mut().project();
        if let Store::Pages(_) = frame.many {
            let many = core::mem::replace(frame.many, Store::Heap(KVVec::new()));
            spare = many.into_spare().or(spare);
        }
        let Some(kept) = frame.kept.take() else {
            continue;
        };
        match &mut room {
            Some(room) => room.join(kept),
            None => room = Some(kept),
        }
    }
    spare
}

/// What [`Tx::drain`] has come to.
pub(crate) enum Drained {
    /// All is sent that can be, or the rest is somebody else's to send.
    Done,
    /// There is more to send over this connection, but this caller has done its share.
    Yield(Arc<Conn>),
    /// The link has failed.
    Failed(Arc<Conn>, Error),
}

/// What somebody who sends a frame sends at most, others' frames too, before he leaves the rest to
/// the listener, bytes.
pub(crate) const SHARE: usize = 4 << 20;

/// The same for those who have more to do than that: the listener, which comes back to it when it has
/// served the other connections, and recovery.
pub(crate) const SMALL_SHARE: usize = 64 << 10;

/// How whoever sends gets at the link.
#[derive(Clone, Copy)]
pub(crate) enum Via<'a> {
    /// As a thread does.
    Thread,
    /// Within the upcall of the link of this connection, where nothing may sleep. What only a thread
    /// can do, such as closing the link, is left to the listener.
    Upcall(&'a Arc<Conn>, &'a dyn Within),
}

impl Via<'_> {
    /// How memory is allocated on the way.
    pub(crate) fn flags(&self) -> Flags {
        match self {
            Via::Thread => GFP_KERNEL,
            // The listener tries again, and waits if it must.
            Via::Upcall(..) => GFP_NOWAIT | __GFP_NOWARN,
        }
    }

    /// How many bytes to send at one go: in an upcall, everything else waits for that.
    fn most(&self) -> usize {
        match self {
            Via::Thread => usize::MAX,
            Via::Upcall(..) => HEADER_LEN + SMALL_SHARE,
        }
    }

    fn send(&self, conn: &Conn, bufs: &[&[u8]], more: bool) -> Result<usize> {
        match self {
            Via::Thread => conn.link().send(bufs, more),
            Via::Upcall(_, link) => link.send(bufs, more),
        }
    }

    fn splice(&self, conn: &Conn, parts: &[Part<'_>], more: bool) -> Result<usize> {
        match self {
            Via::Thread => conn.link().splice(parts, more),
            Via::Upcall(_, link) => link.splice(parts, more),
        }
    }
}

/// How urgent a frame is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Somebody waits for what comes of it.
    Now,
    /// It may be sent together with those that follow.
    Soon,
}

impl Urgency {
    /// From this length on a payload is kept in pages of its own, which need not be copied to be sent:
    /// less is copied sooner than pages are counted. What is in pages goes alone, where other frames go
    /// many at a time.
    const fn pages_from(self) -> usize {
        match self {
            Urgency::Now => 2 << 10,
            Urgency::Soon => 16 << 10,
        }
    }
}

/// How fast frames follow one another, and what has been left to others because of that.
struct Pace {
    /// When the last one came, nanoseconds.
    last: u64,
    /// The number of the last one that had been received then.
    received: u64,
    /// How many have come one right after the other, at most twice [`Self::STREAK`].
    streak: u32,
    /// What is left to others at present, bytes; 0 if nothing is.
    left: usize,
}

impl Pace {
    /// Frames follow right after one another if no more than this is between them, nanoseconds.
    const GAP: u64 = 100_000;
    /// So many of those are sent one by one, before it is believed that more follow. A pause takes
    /// as many away: after one in a long flow, as when its sender was preempted, it still is believed.
    const STREAK: u32 = 16;
    /// What is worth sending by itself, bytes.
    const WORTH: usize = 16 << 10;

    const fn new() -> Self {
        Self {
            last: 0,
            received: 0,
            streak: 0,
            left: 0,
        }
    }

    /// A frame of so many bytes that nobody waits for has come, when `received` was the last number
    /// received. Returns whether it can be left to others.
    ///
    /// Where something comes back between two frames, the other side may be waiting for the second.
    fn can_leave(&mut self, len: usize, received: u64, now: u64) -> bool {
        let follows = now.saturating_sub(self.last) <= Self::GAP && received == self.received;
        self.last = now;
        self.received = received;
        self.streak = if follows {
            (self.streak + 1).min(2 * Self::STREAK)
        } else {
            self.streak.saturating_sub(Self::STREAK)
        };
        self.streak > Self::STREAK && self.left + len < Self::WORTH
    }

    /// What was left has been sent. Whoever left it may have had to stop for that: it was no pause of his.
    fn caught_up(&mut self, now: u64) {
        self.last = now;
    }
}

struct Queue {
    /// Frames for the present connection.
    control: List<OutFrame>,
    /// The last grant for each lane, which says all that those before it did.
    credit: [Option<ListArc<OutFrame>>; 2],
    outbox: Outbox,
    /// To be sent when all that is in the outbox has been.
    question: Option<ListArc<OutFrame>>,
    /// What the last sender could not send.
    unsent: Batch,
    /// The connection, if there is one, and how often it has changed.
    conn: Option<Arc<Conn>>,
    change: u64,
    /// The connection has changed while somebody was sending: what the other side has received.
    resume: Option<u64>,
    /// The connection is to be closed.
    ending: Option<Ending>,
    pace: Pace,
    headers: Jotter,
    /// Somebody is sending.
    busy: bool,
    /// While somebody was sending, something happened that may let him go on.
    again: bool,
    /// The listener is reading many bytes, and whether something was left to it to be sent meanwhile.
    reading: bool,
    left_to_reader: bool,
    /// The session is over.
    over: bool,
}

/// The end of a connection.
struct Ending {
    /// What waits is sent up to this number, as long as there are bytes left of this budget.
    until: u64,
    budget: usize,
    /// The last words.
    last: Option<ListArc<OutFrame>>,
    /// There was no room in the link, and room was made for the rest.
    roomy: bool,
}

impl Ending {
    /// The next frame to send.
    fn fill(&mut self, outbox: &mut Outbox) -> Option<ListArc<OutFrame>> {
        if self.budget > 0 && outbox.next().is_some_and(|seq| seq <= self.until) {
            let frame = outbox.fill()?;
            self.budget = self.budget.saturating_sub(frame.len());
            return Some(frame);
        }
        self.last.take()
    }
}

/// Frames that are being sent, the first of them from `offset` on.
struct Batch {
    frames: List<OutFrame>,
    count: usize,
    offset: usize,
}

impl Batch {
    /// Each frame is at most two buffers.
    const MAX: usize = MAX_BUFS / 2;

    const fn new() -> Self {
        Self {
            frames: List::new(),
            count: 0,
            offset: 0,
        }
    }

    /// Bytes to be sent.
    fn len(&self) -> usize {
        self.frames.iter().map(|frame| frame.len()).sum::<usize>() - self.offset
    }

    /// Fills up from the queue, control frames first. `inbox`: what to acknowledge.
    fn fill(&mut self, queue: &mut Queue, inbox: &Inbox) {
        while self.count < Self::MAX {
            let [messages, calls] = &mut queue.credit;
            let credit = messages.take().or_else(|| calls.take());
            let mut next = credit.or_else(|| queue.control.pop_front());
            if next.is_none() {
                next = match &mut queue.ending {
                    None => queue.outbox.fill().or_else(|| queue.question.take()),
                    Some(ending) => ending.fill(&mut queue.outbox),
                };
            }
            let Some(frame) = next else {
                return;
            };
            frame.ack.store(inbox.tell(), Relaxed);
            self.frames.push_back(frame);
            self.count += 1;
        }
    }

    /// Sends some of it. `more`: other frames follow at once. `headers`: where to put one that goes along
    /// with pages.
    fn send(&self, via: Via<'_>, conn: &Conn, more: bool, headers: &mut Jotter) -> Result<usize> {
        let first = self.frames.iter().next();
        let pages = first
            .as_ref()
            .and_then(|frame| Some((frame, frame.pages()?)));
        if let Some((frame, pages)) = pages {
            if self.offset >= HEADER_LEN {
                return self.send_pages(Part::default(), pages, via, conn, more);
            }
            // Without memory for that it goes ahead of them.
            if self.offset == 0 {
                if let Ok(header) = headers.put(&frame.header(), via.flags()) {
                    return self.send_pages(header, pages, via, conn, more);
                }
            }
        }
        if self.count == 1 {
            // Most frames go alone, and need not pay for the others' places.
            self.send_some::<1, 2>(via, conn, more)
        } else {
            self.send_some::<{ Self::MAX }, MAX_BUFS>(via, conn, more)
        }
    }

    /// Sends pages of the first frame, behind its header, unless that has gone.
    fn send_pages(
        &self,
        header: Part<'_>,
        pages: &Pages,
        via: Via<'_>,
        conn: &Conn,
        more: bool,
    ) -> Result<usize> {
        let mut parts = [Part::default(); MAX_BUFS];
        let (mut n, mut len) = (0, 0);
        let most = via.most();
        let header = core::iter::once(header).filter(|header| !header.bytes().is_empty());
        let pages = pages.parts(self.offset.saturating_sub(HEADER_LEN));
        for (to, part) in parts.iter_mut().zip(Iterator::chain(header, pages)) {
            if len == most {
                break;
            }
            *to = part.cut(most - len);
            n += 1;
            len += to.bytes().len();
        }
        let more = more || len < self.len();
        via.splice(conn, &parts[..n], more)
    }

    /// Sends the first `FRAMES` of them, two buffers each, but no pages.
    fn send_some<const FRAMES: usize, const BUFS: usize>(
        &self,
        via: Via<'_>,
        conn: &Conn,
        mut more: bool,
    ) -> Result<usize> {
        let mut frames: [Option<ArcBorrow<'_, OutFrame>>; FRAMES] = [None; FRAMES];
        let mut headers = [[0; HEADER_LEN]; FRAMES];
        for (i, frame) in self.frames.iter().take(FRAMES).enumerate() {
            let has_pages = frame.pages().is_some();
            more |= has_pages;
            if has_pages && i > 0 {
                // Its header goes with them.
                break;
            }
            headers[i] = frame.header();
            frames[i] = Some(frame);
            if has_pages {
                break;
            }
        }
        let mut bufs: [&[u8]; BUFS] = [&[]; BUFS];
        let mut n = 0;
        let mut skip = self.offset;
        let mut left = via.most();
        for (frame, header) in frames.iter().flatten().zip(&headers) {
            for part in [&header[..], frame.payload()] {
                let skipped = skip.min(part.len());
                skip -= skipped;
                let part = &part[skipped..];
                more |= part.len() > left;
                if !part.is_empty() && n < BUFS && left > 0 {
                    bufs[n] = &part[..part.len().min(left)];
                    left -= bufs[n].len();
                    n += 1;
                }
            }
        }
        via.send(conn, &bufs[..n], more)
    }

    /// `sent` bytes have gone. Moves what they complete to `whole`.
    fn advance(&mut self, sent: usize, whole: &mut List<OutFrame>) {
        self.offset += sent;
        loop {
            let first = self.frames.iter().next().map(|f| f.len());
            match first {
                Some(len) if self.offset >= len => {
                    self.offset -= len;
                    self.count -= 1;
                    if let Some(frame) = self.frames.pop_front() {
                        whole.push_back(frame);
                    }
                }
                _ => return,
            }
        }
    }

    /// Takes out the last frame, but not one that has been begun if that is to be kept.
    fn pop(&mut self, keep_begun: bool) -> Option<ListArc<OutFrame>> {
        if self.count == usize::from(keep_begun && self.offset > 0) {
            return None;
        }
        let frame = self.frames.pop_back()?;
        self.count -= 1;
        if self.count == 0 {
            self.offset = 0;
        }
        Some(frame)
    }

    /// The session is over, and nothing of it is sent any more, but for the rest of what has been begun if
    /// there are last words that come behind it (`is_ending`).
    fn give_up(&mut self, is_ending: bool, gone: &mut List<OutFrame>) {
        while let Some(frame) = self.pop(is_ending) {
            gone.push_back(frame);
        }
    }

    /// Puts what belongs to the session back where it came from; the rest is gone.
    fn put_back(&mut self, outbox: &mut Outbox, gone: &mut List<OutFrame>) {
        while let Some(frame) = self.pop(false) {
            if frame.seq() != 0 {
                outbox.put_back(frame);
            } else {
                gone.push_back(frame);
            }
        }
    }
}

impl Queue {
    /// Another connection goes on where the other side is.
    fn resume(&mut self, received: u64, gone: &mut List<OutFrame>) {
        // That can be was checked when the connection was attached.
        if let Ok(mut done) = self.outbox.resume(received.max(self.outbox.acked())) {
            gone.push_all_back(&mut done);
        }
    }

    /// Whether a frame of so many bytes, the next to be queued, can be left to others.
    fn can_leave(&mut self, urgency: Urgency, len: usize, inbox: &Inbox) -> bool {
        // Whoever is sending takes it along, and whoever connects.
        urgency == Urgency::Soon
            && !self.busy
            && self.conn.is_some()
            && self.ending.is_none()
            // Nothing but what is left to others waits.
            && (self.pace.left > 0 || self.outbox.is_idle() && self.unsent.count == 0)
            && self.pace.can_leave(len, inbox.received(), clock::nanos())
    }

    /// Leaves a frame of so many bytes to others.
    fn leave(&mut self, len: usize) -> Drained {
        let first = self.pace.left == 0;
        self.pace.left += len;
        match &self.conn {
            Some(conn) if first => Drained::Yield(conn.clone()),
            _ => Drained::Done,
        }
    }

    /// Whether whoever works `via` leaves what there is to be sent to the reader.
    fn leave_to_reader(&mut self, via: Via<'_>) -> bool {
        // Last words are worth waiting for the lock: what follows takes away what they come behind.
        let leaves = self.reading && self.ending.is_none() && matches!(via, Via::Thread);
        self.left_to_reader |= leaves;
        leaves
    }

    /// There is no room in the link. If its connection ends, room is to be made for the last words: once,
    /// for the link is not waited for. Then only what has been begun stays in the batch.
    fn wants_room(&mut self, batch: &mut Batch, gone: &mut List<OutFrame>) -> bool {
        let Some(ending) = &mut self.ending else {
            return false;
        };
        if core::mem::replace(&mut ending.roomy, true) {
            return false;
        }
        ending.budget = 0;
        while let Some(frame) = batch.pop(true) {
            if let Header::Bye(_) = frame.header {
                ending.last = Some(frame);
            } else if frame.seq() != 0 {
                self.outbox.put_back(frame);
            } else {
                gone.push_back(frame);
            }
        }
        true
    }

    /// There is no connection any more.
    fn detach(&mut self, gone: &mut List<OutFrame>) -> Option<Arc<Conn>> {
        gone.push_all_back(&mut self.control);
        for frame in self.credit.iter_mut().filter_map(Option::take) {
            gone.push_back(frame);
        }
        self.resume = None;
        if let Some(last) = self.ending.take().and_then(|ending| ending.last) {
            gone.push_back(last);
        }
        if self.over {
            self.unsent.give_up(false, gone);
        }
        self.pace.left = 0;
        self.change += 1;
        self.conn.take()
    }

    /// Whether a connection has nothing to do.
    fn is_idle(&self) -> bool {
        self.unsent.count == 0
            && self.outbox.is_idle()
            && self.control.is_empty()
            && self.credit.iter().all(Option::is_none)
            && self.question.is_none()
            && self.ending.is_none()
    }

    fn is_past(&self, conn: &Arc<Conn>) -> bool {
        !self.conn.as_ref().is_some_and(|c| Arc::ptr_eq(c, conn))
    }
}

/// The sending side of a session.
#[pin_data]
pub(crate) struct Tx {
    #[pin]
    queue: SpinLockBh<Queue>,
    /// The last acknowledgement: most frames bring no other, and then need no lock.
    acked: Atomic<u64>,
    /// Pages of the last frame that was acknowledged. What is in them the other side has been sent.
    #[pin]
    spare: SpinLockBh<Option<Spare>>,
}

impl Tx {
    /// An empty one, without a connection.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            queue <- new_spinlock_bh!(
                Queue {
                    control: List::new(),
                    credit: [None, None],
                    outbox: Outbox::new(),
                    question: None,
                    unsent: Batch::new(),
                    conn: None,
                    change: 0,
                    resume: None,
                    ending: None,
                    pace: Pace::new(),
                    headers: Jotter::new(),
                    busy: false,
                    again: false,
                    reading: false,
                    left_to_reader: false,
                    over: false,
                },
                "Tx::queue"
            ),
            acked: Atomic::new(0),
            spare <- new_spinlock_bh!(None, "Tx::spare"),
        })
    }

    // ---- Payloads.

    /// A payload of these bytes, which are copied now if they are many. Process context.
    #[inline]
    pub(crate) fn payload<'a>(&self, bytes: &'a [u8], urgency: Urgency) -> Result<Payload<'a>> {
        Ok(if bytes.len() <= FEW {
            Payload::Few(bytes)
        } else {
            Payload::Many(Store::copied(bytes, urgency, self)?)
        })
    }

    /// Room for a payload of so many bytes, for whoever works `via`. There are zeros in it, or what the
    /// other side has been sent before.
    pub(crate) fn room(&self, len: usize, via: Via<'_>) -> Result<Store> {
        Store::room(len, via, self)
    }

    /// Pages with room for so many bytes, if there are any to be used again.
    fn spare(&self, len: usize) -> Option<Spare> {
        let mut spare = self.spare.lock();
        // Not so much that what is kept would be more than it is counted for.
        let most = 2 * len.next_multiple_of(PAGE_SIZE);
        spare.take_if(|spare| (len..=most).contains(&spare.capacity()))
    }

    /// Keeps pages to be used again.
    fn keep(&self, spare: Spare) {
        if spare.capacity() <= SPARE_MAX {
            let old = self.spare.lock().replace(spare);
            drop(old);
        }
    }

    /// Lets go of memory that is not needed while little is sent.
    pub(crate) fn trim(&self) {
        let spare = self.spare.lock().take();
        let headers = core::mem::replace(&mut self.queue.lock().headers, Jotter::new());
        drop((spare, headers));
    }

    // ---- Frames.

    /// Queues a frame of the session behind all others, and sends as [`Tx::drain`] does, or leaves that
    /// to others. Returns the frame's number; gives it back when the session is over. Process context,
    /// or as `via` says.
    pub(crate) fn transmit(
        &self,
        frame: ListArc<OutFrame>,
        inbox: &Inbox,
        urgency: Urgency,
        share: usize,
        via: Via<'_>,
    ) -> Result<(u64, Drained), ListArc<OutFrame>> {
        let mut queue = self.queue.lock();
        if queue.over {
            return Err(frame);
        }
        let len = frame.len();
        let leave = queue.can_leave(urgency, len, inbox);
        let seq = queue.outbox.push(frame);
        if leave {
            return Ok((seq, queue.leave(len)));
        }
        Ok((seq, self.drain_locked(queue, inbox, share, via)))
    }

    /// Queues a grant before all frames of the session, if there still is this connection. For the same
    /// lane the one that grants more stays: whoever has found less may come later.
    pub(crate) fn push_credit(&self, conn: &Arc<Conn>, lane: Lane, frame: ListArc<OutFrame>) {
        let mut queue = self.queue.lock();
        let old = queue.credit[lane as usize].as_ref();
        let is_told = old.is_some_and(|old| old.limit() >= frame.limit());
        let unneeded = if is_told || queue.is_past(conn) || queue.ending.is_some() {
            Some(frame)
        } else {
            queue.credit[lane as usize].replace(frame)
        };
        drop(queue);
        drop(unneeded);
    }

    /// Queues a control frame for this connection, which is sent before all that is sequenced.
    pub(crate) fn push_control(&self, conn: &Arc<Conn>, frame: ListArc<OutFrame>) {
        let mut queue = self.queue.lock();
        if queue.is_past(conn) || queue.ending.is_some() {
            drop(queue);
            drop(frame);
        } else {
            queue.control.push_back(frame);
        }
    }

    /// Queues a control frame if no other frame waits, which would do as well. Those that are being sent
    /// would not: what they acknowledge has been settled.
    pub(crate) fn push_ping(&self, frame: ListArc<OutFrame>) {
        let mut queue = self.queue.lock();
        let idle = queue.outbox.is_idle() && queue.credit.iter().all(Option::is_none);
        if idle && queue.control.is_empty() && queue.conn.is_some() && queue.ending.is_none() {
            queue.control.push_back(frame);
        } else {
            drop(queue);
            drop(frame);
        }
    }

    /// Has a control frame sent when no other frame waits any more: it asks about them.
    pub(crate) fn push_question(&self, frame: ListArc<OutFrame>) {
        let mut queue = self.queue.lock();
        let old = queue.question.replace(frame);
        drop(queue);
        drop(old);
    }

    // ---- Acknowledgements.

    /// The number of the last frame that was acknowledged.
    pub(crate) fn acked(&self) -> u64 {
        self.queue.lock().outbox.acked()
    }

    /// How many frames such an acknowledgement would let go of, at the most.
    pub(crate) fn would_forget(&self, ack: u64) -> u64 {
        ack.saturating_sub(self.acked.load(Relaxed))
    }

    /// The other side has delivered everything up to this number. Returns whether that is news.
    pub(crate) fn acknowledge(&self, ack: u64) -> Result<bool, Violation> {
        if ack == self.acked.load(Relaxed) {
            return Ok(false);
        }
        let mut queue = self.queue.lock();
        let gone = queue.outbox.acknowledge(ack)?;
        // What a greeting has acknowledged is news until the first frame behind it.
        let acked = queue.outbox.acked();
        let news = acked > self.acked.load(Relaxed);
        self.acked.store(acked, Relaxed);
        drop(queue);
        if let Some(spare) = let_go(gone) {
            self.keep(spare);
        }
        Ok(news)
    }

    /// Whether the other side can have received that much.
    pub(crate) fn can_resume(&self, received: u64) -> bool {
        self.queue.lock().outbox.can_resume(received)
    }

    // ---- The connection.

    /// From now on frames go over this connection, from what the other side has received on.
    pub(crate) fn attach(&self, conn: &Arc<Conn>, received: u64) -> Result<(), Violation> {
        let mut queue = self.queue.lock();
        if queue.over || !queue.outbox.can_resume(received) {
            return Err(Violation);
        }
        let mut gone = List::new();
        let ending = queue.ending.is_some();
        let old = queue.detach(&mut gone);
        queue.conn = Some(conn.clone());
        if queue.busy {
            queue.resume = Some(received);
            queue.again = true;
        } else {
            let mut batch = core::mem::replace(&mut queue.unsent, Batch::new());
            batch.put_back(&mut queue.outbox, &mut gone);
            queue.resume(received, &mut gone);
        }
        drop(queue);
        drop(gone);
        if let Some(old) = old.filter(|_| ending) {
            // Its last words have not got out.
            old.close_link(true);
        }
        Ok(())
    }

    /// This connection is of no more use.
    pub(crate) fn detach(&self, conn: &Arc<Conn>) {
        let mut queue = self.queue.lock();
        if queue.is_past(conn) {
            return;
        }
        let mut gone = List::new();
        let ending = queue.ending.is_some();
        let old = queue.detach(&mut gone);
        drop(queue);
        drop(gone);
        if let Some(old) = old.filter(|_| ending) {
            // Its last words have not got out.
            old.close_link(true);
        }
    }

    /// Sends what waits, or as much of it as anybody sends at one go, and `last` over this connection and
    /// closes it, unless it has gone already. Where there is no room, room is made for what has been
    /// begun and `last`; the rest waits for the next connection.
    pub(crate) fn end(&self, inbox: &Inbox, conn: &Arc<Conn>, last: ListArc<OutFrame>) {
        let mut queue = self.queue.lock();
        if queue.is_past(conn) {
            drop(queue);
            drop(last);
            conn.close_link(true);
            return;
        }
        let gone = (
            core::mem::replace(&mut queue.control, List::new()),
            core::mem::take(&mut queue.credit),
        );
        queue.ending = Some(Ending {
            until: queue.outbox.last(),
            budget: SHARE,
            last: Some(last),
            roomy: false,
        });
        drop(queue);
        drop(gone);
        // Whoever sends it closes the link.
        self.drain(inbox, SMALL_SHARE);
    }

    /// The session is over: takes no more frames and drops all there are. What the connection has yet
    /// to say it says.
    pub(crate) fn close(&self) {
        let mut queue = self.queue.lock();
        let mut unsent = List::new();
        queue.over = true;
        let is_ending = queue.ending.is_some();
        queue.unsent.give_up(is_ending, &mut unsent);
        let rest = (queue.outbox.clear(), queue.question.take(), unsent);
        // Their charges want to be released without the lock.
        drop(queue);
        drop(rest);
    }

    /// The listener is about to read many bytes, or has done so. Returns whether something was left to it
    /// to be sent.
    pub(crate) fn set_reading(&self, reading: bool) -> bool {
        let mut queue = self.queue.lock();
        queue.reading = reading;
        core::mem::take(&mut queue.left_to_reader)
    }

    /// Sends what waits, as far as there is room, until `share` is exceeded. Process context.
    pub(crate) fn drain(&self, inbox: &Inbox, share: usize) -> Drained {
        self.drain_locked(self.queue.lock(), inbox, share, Via::Thread)
    }

    fn drain_locked<'a>(
        &'a self,
        mut queue: SpinLockBhGuard<'a, Queue>,
        inbox: &Inbox,
        share: usize,
        via: Via<'_>,
    ) -> Drained {
        let mut sending = match Sending::begin(&mut queue, via) {
            Ok(sending) => sending,
            Err(drained) => return drained,
        };
        loop {
            let result = sending.step(&mut queue, inbox, share);
            drop(queue);
            sending.tidy();
            match result {
                Some(result) => return result,
                None => sending.send(),
            }
            queue = self.queue.lock();
        }
    }
}

/// Somebody who is sending.
struct Sending<'a> {
    via: Via<'a>,
    batch: Batch,
    conn: Option<Arc<Conn>>,
    change: u64,
    total: usize,
    /// This caller sends more behind what is in the batch.
    more: bool,
    headers: Jotter,
    /// There is to be room for so much more.
    room: usize,
    /// What has come of the last attempt, and the frames that it has completed.
    outcome: Result<usize>,
    whole: List<OutFrame>,
    /// What is not needed any more, to be dropped without the lock.
    gone: List<OutFrame>,
    past: Option<Arc<Conn>>,
    /// A connection whose last words have been said.
    ended: Option<Arc<Conn>>,
}

impl<'a> Sending<'a> {
    /// Begins, unless somebody else is at it or nothing can be sent, or not from here.
    fn begin(queue: &mut Queue, via: Via<'a>) -> Result<Self, Drained> {
        if queue.busy {
            queue.again = true;
            return Err(Drained::Done);
        }
        if queue.is_idle() {
            return Err(Drained::Done);
        }
        if let Via::Upcall(own, _) = via {
            if queue.is_past(own) || queue.ending.is_some() {
                return Err(Drained::Yield(own.clone()));
            }
        }
        if queue.leave_to_reader(via) {
            return Err(Drained::Done);
        }
        let Some(conn) = queue.conn.clone() else {
            return Err(Drained::Done);
        };
        queue.busy = true;
        Ok(Self {
            via,
            batch: core::mem::replace(&mut queue.unsent, Batch::new()),
            conn: Some(conn),
            change: queue.change,
            total: 0,
            more: false,
            headers: core::mem::replace(&mut queue.headers, Jotter::new()),
            room: 0,
            outcome: Ok(0),
            whole: List::new(),
            gone: List::new(),
            past: None,
            ended: None,
        })
    }

    /// Decides what comes next: to send the batch, or to end with a result.
    fn step(&mut self, queue: &mut Queue, inbox: &Inbox, share: usize) -> Option<Drained> {
        while let Some(frame) = self.whole.pop_front() {
            let unneeded = if frame.seq() == 0 || queue.over {
                Some(frame)
            } else {
                queue.outbox.sent(frame)
            };
            if let Some(frame) = unneeded {
                self.gone.push_back(frame);
            }
        }
        let changed = self.change != queue.change;
        if changed {
            self.change = queue.change;
            if let Via::Thread = self.via {
                self.past = core::mem::replace(&mut self.conn, queue.conn.clone());
            }
            if queue.over {
                self.batch.give_up(false, &mut self.gone);
            }
            self.batch.put_back(&mut queue.outbox, &mut self.gone);
            if let Some(received) = queue.resume.take() {
                queue.resume(received, &mut self.gone);
            }
            self.outcome = Ok(0);
        }
        let again = core::mem::take(&mut queue.again);
        let outcome = core::mem::replace(&mut self.outcome, Ok(0));
        let result = match (&self.conn, outcome) {
            (None, _) => Drained::Done,
            // Not from here: the listener goes on with it, which also finds what has failed.
            (Some(conn), outcome)
                if self.is_upcall() && (changed || queue.ending.is_some() || outcome.is_err()) =>
            {
                Drained::Yield(conn.clone())
            }
            (Some(_), Err(e))
                if e == EAGAIN && queue.wants_room(&mut self.batch, &mut self.gone) =>
            {
                self.batch.fill(queue, inbox);
                self.room = self.batch.len();
                return None;
            }
            (Some(_), Err(e)) if e == EAGAIN && !again => Drained::Done,
            (Some(conn), Err(e)) if e != EAGAIN => Drained::Failed(conn.clone(), e),
            (Some(conn), _) => {
                self.batch.fill(queue, inbox);
                if self.batch.count == 0 {
                    Drained::Done
                } else if queue.leave_to_reader(self.via) {
                    // He has begun meanwhile.
                    Drained::Done
                } else if self.total >= share && queue.ending.is_none() {
                    Drained::Yield(conn.clone())
                } else {
                    self.more = !queue.outbox.is_idle()
                        && self.batch.count == Batch::MAX
                        && self.total + self.batch.len() < share;
                    return None;
                }
            }
        };
        queue.busy = false;
        // Nobody has left anything meanwhile.
        if core::mem::take(&mut queue.pace.left) > 0 {
            queue.pace.caught_up(clock::nanos());
        }
        core::mem::swap(&mut queue.headers, &mut self.headers);
        if queue.ending.is_some() && !self.is_upcall() {
            self.ended = queue.detach(&mut self.gone);
        }
        if queue.over {
            self.batch.give_up(queue.ending.is_some(), &mut self.gone);
        }
        queue.unsent = core::mem::replace(&mut self.batch, Batch::new());
        Some(result)
    }

    fn is_upcall(&self) -> bool {
        matches!(self.via, Via::Upcall(..))
    }

    fn send(&mut self) {
        let Some(conn) = &self.conn else {
            return;
        };
        match core::mem::take(&mut self.room) {
            0 => {}
            len => conn.link().make_room(len),
        }
        self.outcome = self
            .batch
            .send(self.via, conn, self.more, &mut self.headers);
        if let Ok(n) = self.outcome {
            self.total += n;
            conn.note_sent();
            self.batch.advance(n, &mut self.whole);
            for frame in self.whole.iter() {
                if let Some(kept) = &frame.kept {
                    kept.taken();
                }
            }
        }
    }

    /// Does what must not be done under the lock.
    fn tidy(&mut self) {
        drop(let_go(core::mem::replace(&mut self.gone, List::new())));
        self.past = None;
        if let Some(conn) = self.ended.take() {
            conn.close_link(true);
            // The listener sees to what follows from that.
            conn.schedule();
        }
    }
}

#[cfg(KCCM_KUNIT)]
#[kunit_tests(kccm_pace)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000_000;

    /// One that has had enough frames to leave the next, the last of them now.
    fn quick() -> Pace {
        let mut pace = Pace::new();
        for left in (0..=u64::from(Pace::STREAK)).rev() {
            assert!(!pace.can_leave(HEADER_LEN, 0, NOW - left));
        }
        pace
    }

    #[test]
    fn frames_that_follow_are_left() {
        let mut pace = quick();
        for i in 1..10 {
            assert!(pace.can_leave(HEADER_LEN, 0, NOW + i * Pace::GAP));
        }
    }

    #[test]
    fn frames_apart_are_sent() {
        let mut pace = Pace::new();
        for i in 1..100 {
            assert!(!pace.can_leave(HEADER_LEN, 0, NOW + i * (Pace::GAP + 1)));
        }
        let mut pace = quick();
        assert!(!pace.can_leave(HEADER_LEN, 0, NOW + Pace::GAP + 1));
        assert!(!pace.can_leave(HEADER_LEN, 0, NOW + Pace::GAP + 2));
    }

    #[test]
    fn a_pause_does_not_end_a_long_flow() {
        let mut pace = quick();
        for i in 1..=u64::from(Pace::STREAK) {
            assert!(pace.can_leave(HEADER_LEN, 0, NOW + i));
        }
        // The first one after it is sent, the next is left.
        let after = NOW + 1000 * Pace::GAP;
        assert!(!pace.can_leave(HEADER_LEN, 0, after));
        assert!(pace.can_leave(HEADER_LEN, 0, after + 1));
        // Another one right after that does.
        let after = after + 1000 * Pace::GAP;
        for i in 0..u64::from(Pace::STREAK) {
            assert!(!pace.can_leave(HEADER_LEN, 0, after + i));
        }
        assert!(pace.can_leave(HEADER_LEN, 0, after + u64::from(Pace::STREAK)));
    }

    #[test]
    fn who_had_to_stop_has_not_paused() {
        let mut pace = quick();
        assert!(pace.can_leave(HEADER_LEN, 0, NOW + 1));
        pace.caught_up(NOW + 1000 * Pace::GAP);
        assert!(pace.can_leave(HEADER_LEN, 0, NOW + 1001 * Pace::GAP));
        assert!(!pace.can_leave(HEADER_LEN, 0, NOW + 1003 * Pace::GAP));
    }

    #[test]
    fn frames_of_a_conversation_are_sent() {
        let mut pace = Pace::new();
        for i in 1..100 {
            assert!(!pace.can_leave(HEADER_LEN, i, NOW + i));
        }
        let mut pace = quick();
        assert!(!pace.can_leave(HEADER_LEN, 1, NOW + 1));
        assert!(!pace.can_leave(HEADER_LEN, 1, NOW + 2));
    }

    #[test]
    fn what_is_enough_is_sent() {
        let mut pace = quick();
        assert!(!pace.can_leave(Pace::WORTH, 0, NOW));
        assert!(pace.can_leave(Pace::WORTH - 1, 0, NOW));
        pace.left = Pace::WORTH - 100;
        assert!(pace.can_leave(99, 0, NOW));
        assert!(!pace.can_leave(100, 0, NOW));
    }
}
