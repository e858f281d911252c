/* SPDX-License-Identifier: GPL-2.0 */
/*
 * session.pml: greetings, sessions and sequence numbers between two nodes, as
 * in ../protocol.md, to be checked by spin (`make model`). README.md here says
 * what is modelled and what is not, and how to read what spin reports.
 *
 * Each step carries the name of the function that does it. A process is a
 * thread, or a user, or the world; each step of it is atomic, because it is
 * done under the peer's lock or by the one listener thread of that peer.
 *
 * Macros change it: those of the bounds, below; LIVENESS; and mistakes, each of
 * which spin has to find. scripts/model.sh has the list.
 */

/* Bounds: what may happen in one run. */
#ifndef FRAMES
#define FRAMES	2	/* frames that each node sends */
#endif
#ifndef BREAKS
#define BREAKS	2	/* connections that break, or are given up */
#endif
#ifndef RESTARTS
#define RESTARTS 1	/* restarts, of either node */
#endif
#ifndef DOWNS
#define DOWNS	0	/* silences that are taken for death */
#endif
#ifndef CALLS
#define CALLS	0	/* whether frames to B are calls that it replies to */
#endif
#define SLOTS	2	/* connections that exist at once */
#define ROOM	3	/* what a connection holds in each direction */
#define LIVES	(RESTARTS + 1)
#define NAMES	12	/* more than there are sessions */

#define A	0	/* the node with the lower id: it connects */
#define B	1	/* it listens */
#define NONE	SLOTS	/* no connection */
#define ID(n)	('A' + (n))

mtype = {
	HELLO,		/* incarnation, session, received */
	WELCOME,	/* incarnation, session, received */
	REFUSAL,
	FRAME,		/* number, acknowledgement, what it was sent in */
	PING,		/* -, acknowledgement, what it was sent in */
	BYE
};

/* The end of a connection at B: until the hello, until the first frame of a
 * session that is new, in use. */
#define GONE		0
#define AWAIT_HELLO	1
#define UNCONFIRMED	2
#define OPEN		3

typedef Connection {
	bool dialled;		/* A's end is open */
	byte accepted;		/* B's end */
	byte from;		/* the incarnation of A's that has greeted */
	byte name;		/* the session that it was offered */
	bool doubted;		/* another incarnation was refused for its sake */
	bool broken;		/* nothing more gets in; what is in may get out */
}

typedef Node {
	bool live;
	byte incarnation;
	/* Peer */
	byte session;		/* 0 for none */
	byte with;		/* the incarnation of the other in it */
	byte conn;
	bool up;		/* conn belongs to the session, frames may be sent */
	bool down;		/* users have been told so */
	/* Outbox: it keeps acked + 1 to sent */
	byte sent;
	byte acked;
	byte filled;		/* the last that has gone out on conn */
	byte foreign;		/* bit n: frame n is a reply of another session */
	/* Inbox */
	byte got;		/* the last that has come in */
	byte given;		/* the last that has been delivered */
	byte told;		/* the last acknowledgement on conn */
	bool wrong;		/* the frame that is got but not given is foreign */
	byte running;		/* the session of a call whose handler runs */
	/* What may still happen. */
	byte pushes;
}

Node node[2];
Connection link[SLOTS];
chan to_a[SLOTS] = [ROOM] of { mtype, byte, byte, byte };
chan to_b[SLOTS] = [ROOM] of { mtype, byte, byte, byte };

byte breaks = BREAKS;
byte restarts = RESTARTS;
byte downs = DOWNS;

/* What has been delivered in each session, by direction: for the checks. */
byte delivered[2 * NAMES];
#define DELIVERED(to, session)	delivered[(to) * NAMES + (session)]

#define LINKED_UP(n)	(node[n].live && node[n].up)
#define ALL_DONE(n)	(node[n].filled == node[n].sent && node[n].acked == node[n].sent && \
			 node[1 - (n)].given == node[n].sent && node[n].running == 0)
#define done		(LINKED_UP(A) && LINKED_UP(B) && node[A].conn == node[B].conn && \
			 !link[node[A].conn].broken && node[A].session == node[B].session && \
			 ALL_DONE(A) && ALL_DONE(B))

/* What has to be true; the reason is in the trail. */
#define MUST(what, why)	if :: what :: !(what) -> printf(why); assert(false) fi

/* How sessions are named: by whose they are, and so that no other has the name. */
#ifdef NUMBERS_BEGIN_AGAIN
#define NAME(a, b)	1
#else
#define NAME(a, b)	(((a) - 1) * LIVES + (b))
#endif
#if defined(FIRST_TABLE) || defined(NEW_NAME_EACH_TIME)
byte names;
#endif

#ifdef RECEIPT_IS_DELIVERY
#define RECEIVED(n)	node[n].got
#else
#define RECEIVED(n)	node[n].given
#endif

/* ---- Connections. */

inline tidy(k)
{
	if
	:: !link[k].dialled && link[k].accepted == GONE ->
		link[k].broken = false;
		link[k].from = 0;
		link[k].name = 0;
		link[k].doubted = false;
		do
		:: nempty(to_a[k]) -> to_a[k]?_,_,_,_
		:: empty(to_a[k]) && nempty(to_b[k]) -> to_b[k]?_,_,_,_
		:: empty(to_a[k]) && empty(to_b[k]) -> break
		od
	:: else -> link[k].broken = true
	fi
}

/* Closes the end of node n. */
inline close(n, k)
{
	if
	:: (n) == A -> link[k].dialled = false
	:: else -> link[k].accepted = GONE
	fi;
	tidy(k)
}

inline send(n, k, kind, x, y, z)
{
	if
	:: link[k].broken -> skip
	:: !link[k].broken && (n) == A -> to_b[k]!kind(x, y, z)
	:: !link[k].broken && (n) == B -> to_a[k]!kind(x, y, z)
	fi
}

#define ROOM_FROM(n, k)	((n) == A && nfull(to_b[k]) || (n) == B && nfull(to_a[k]))

/* ---- Peer, Outbox, Inbox. */

/* Outbox::acknowledge, and the first half of Outbox::resume */
inline acknowledge(n, number)
{
	/* Nobody acknowledges what was never sent. */
	MUST(number <= node[n].sent, "WRONG: acknowledged, but never sent\n");
	/* A frame is forgotten after it has been delivered, not before. */
	MUST(number <= DELIVERED(1 - (n), node[n].session), "WRONG: forgotten, but not delivered\n");
	if
	:: number > node[n].acked -> node[n].acked = number
	:: else
	fi
}

/* Outbox::resume */
inline resume(n, received)
{
#if defined(NO_DUPLICATE_CHECK)
	/* With it, this would do no harm. */
	node[n].filled = node[n].acked
#elif defined(RESUME_FROM_OWN_COUNT)
	acknowledge(n, received)
#else
	acknowledge(n, received);
	node[n].filled = received
#endif
}

/* Peer::lost: a connection of the session has ended, or an attempt has */
inline lost(n)
{
	printf("%c: connection %d has ended (Peer::lost)\n", ID(n), node[n].conn);
	close(n, node[n].conn);
	node[n].conn = NONE;
	node[n].up = false;
	/* What could not be delivered is not kept. */
	node[n].got = node[n].given;
	node[n].wrong = false
}

/* Peer::end_session: and the other incarnation is over, or it would be wrong */
inline end_session(n)
{
	printf("%c ends session %d (Peer::end_session)\n", ID(n), node[n].session);
	MUST(!node[1 - (n)].live || node[1 - (n)].incarnation != node[n].with,
	     "WRONG: a session ends, but both incarnations live\n");
	node[n].session = 0;
	node[n].with = 0;
	node[n].sent = 0;
	node[n].acked = 0;
	node[n].filled = 0;
	node[n].foreign = 0;
	node[n].got = 0;
	node[n].given = 0;
	node[n].wrong = false;
	node[n].down = false
}

/* Peer::welcomed, Peer::accepted: a session begins, or goes on, on connection k */
inline establish(n, k, said)
{
	printf("%c is up on connection %d: session %d, sends from %d on\n",
		ID(n), k, node[n].session, node[n].filled + 1);
	node[n].conn = k;
	node[n].up = true;
	node[n].down = false;
	node[n].told = said
}

/* Inbox::judge, Outbox::acknowledge: node n reads a frame */
inline read_frame(n, kind, number, ack, origin)
{
	printf("%c reads %e %d (Inbox::judge), acknowledgement %d, of session %d\n",
		ID(n), kind, number, ack, origin % NAMES);
	/* Nothing of one session in another. */
	MUST(origin % NAMES == node[n].session, "WRONG: a frame of another session\n");
	acknowledge(n, ack);
	if
	:: kind == FRAME && number == node[n].got + 1 ->
		node[n].got = number;
		node[n].wrong = origin >= NAMES
#ifdef NO_DUPLICATE_CHECK
	:: kind == FRAME && number <= node[n].got ->
		node[n].got = number;
		node[n].given = number - 1
#endif
	:: kind == FRAME && number > node[n].got + 1 ->
		/* Only from a peer that is broken. */
		MUST(false, "WRONG: a gap\n")
	:: else
	fi
}

/* Endpoint::deliver, rcall::serve, Calls::complete */
inline deliver(n)
{
	printf("%c delivers %d of session %d (Endpoint::deliver, rcall::serve)\n",
		ID(n), node[n].got, node[n].session);
	node[n].given = node[n].got;
	DELIVERED(n, node[n].session) = DELIVERED(n, node[n].session) + 1;
	/* In order, exactly once. */
	MUST(DELIVERED(n, node[n].session) == node[n].given, "WRONG: delivered again, or not in order\n");
	MUST(!node[n].wrong, "WRONG: delivered, but of another session\n");
	if
	:: CALLS && (n) == B && node[n].running == 0 -> node[n].running = node[n].session
	:: else
	fi
}

/* A node has stopped being there, with its connections. */
inline vanish(n)
{
	node[n].live = false;
	node[n].conn = NONE;
	node[n].up = false;
	node[n].session = 0;
	node[n].with = 0;
	node[n].sent = 0;
	node[n].acked = 0;
	node[n].filled = 0;
	node[n].foreign = 0;
	node[n].got = 0;
	node[n].given = 0;
	node[n].told = 0;
	node[n].wrong = false;
	node[n].running = 0;
	node[n].down = false;
	close(n, 0);
	close(n, 1)
}

/* ---- The recovery thread of A: recovery::dial, Peer::linked, Peer::tick. */

#define FREE(k)	(!link[k].dialled && link[k].accepted == GONE)
#ifdef NO_OLD_CONNECTIONS
#define ALONE(other)	FREE(other)
#else
#define ALONE(other)	true
#endif

inline dial(k)
{
	printf("A dials on connection %d (Peer::linked): hello, incarnation %d, session %d, received %d\n",
		k, node[A].incarnation, node[A].session, RECEIVED(A));
	link[k].dialled = true;
	link[k].accepted = AWAIT_HELLO;
	node[A].conn = k;
	/* Peer::linked */
	to_b[k]!HELLO(node[A].incarnation, node[A].session, RECEIVED(A));
	node[A].told = RECEIVED(A)
}

active proctype Recovery()
{
end:	do
	:: d_step { node[A].live && node[B].live && node[A].conn == NONE && FREE(0) && ALONE(1) -> dial(0) }
	:: d_step { node[A].live && node[B].live && node[A].conn == NONE && !FREE(0) && FREE(1) && ALONE(0) -> dial(1) }
	od
}

/* ---- The listener thread of A. */

/* Listener::answered */
inline answered(k)
{
	to_a[k]?kind, x, y, z;
	printf("A reads %e on connection %d (Listener::answered): incarnation %d, session %d, received %d\n",
		kind, k, x, y, z);
	if
	:: kind == REFUSAL -> lost(A)
	:: kind == WELCOME ->
#ifdef ANY_SESSION_RESUMED
		if
		:: node[A].session == 0 -> node[A].session = y; node[A].with = x
		:: else
		fi;
#else
		/* Peer::welcomed */
		if
		:: node[A].session != y ->
			if
			:: node[A].session != 0 -> end_session(A)
			:: else
			fi;
			node[A].session = y;
			node[A].with = x;
			node[A].told = 0;
			MUST(z == 0, "WRONG: a new session in which something was received\n")
		:: else
		fi;
#endif
		resume(A, z);
		establish(A, k, node[A].told);
		/* This confirms what the welcome says. */
		send(A, k, PING, 0, RECEIVED(A), node[A].session)
	fi
}

inline read(n, queue)
{
	queue?kind, x, y, z;
	if
	:: kind == BYE ->
		lost(n);
		end_session(n)
	:: else -> read_frame(n, kind, x, y, z)
	fi
}

#define READABLE(n, k)	(node[n].live && node[n].conn == k && node[n].up && \
			 node[n].got == node[n].given)
#define FORGET		kind = 0; x = 0; y = 0; z = 0

active proctype Listener_A()
{
	mtype kind;
	byte x, y, z;

end:	do
	:: d_step { node[A].conn == 0 && !node[A].up && nempty(to_a[0]) -> answered(0); FORGET }
	:: d_step { node[A].conn == 1 && !node[A].up && nempty(to_a[1]) -> answered(1); FORGET }
	:: d_step { READABLE(A, 0) && nempty(to_a[0]) -> read(A, to_a[0]); FORGET }
	:: d_step { READABLE(A, 1) && nempty(to_a[1]) -> read(A, to_a[1]); FORGET }
	:: d_step { node[A].got > node[A].given -> deliver(A) }
	/* Peer::lost */
	:: d_step { node[A].conn == 0 && link[0].broken -> lost(A) }
	:: d_step { node[A].conn == 1 && link[1].broken -> lost(A) }
	od
}

/* ---- The listener thread of B. */

inline refuse(k)
{
	printf("B refuses connection %d\n", k);
	send(B, k, REFUSAL, 0, 0, 0);
	close(B, k)
}

/* Peer::accepting: the session goes on, on this connection */
inline accepting(k, received)
{
	if
	:: node[B].conn != NONE -> lost(B)
	:: else
	fi;
	resume(B, received);
	link[k].accepted = OPEN;
	send(B, k, WELCOME, node[B].incarnation, node[B].session, RECEIVED(B));
	establish(B, k, RECEIVED(B))
}

/* Peer::accepted: session `which` with the incarnation `other` begins */
inline begin(k, which, other)
{
	if
	:: node[B].conn != NONE -> lost(B)
	:: else
	fi;
	if
	:: node[B].session != 0 -> end_session(B)
	:: else
	fi;
	node[B].session = which;
	node[B].with = other;
	link[k].accepted = OPEN;
	establish(B, k, 0)
}

#define IN_OUTBOX(received)	(node[B].acked <= received && received <= node[B].sent)
#define UNUSED			(node[B].acked == 0 && node[B].got == 0)

/* Listener::greeted, check_hello, Listener::welcome */
inline greeted(k)
{
	to_b[k]?kind, x, y, z;
	printf("B reads the hello on connection %d (Listener::greeted): incarnation %d, session %d, received %d\n",
		k, x, y, z);
	link[k].from = x;
#ifdef ANY_SESSION_RESUMED
	if
	:: node[B].session != 0 -> node[B].with = x; accepting(k, z)
	:: else
#else
	if
#endif
	/* It is resumed. */
	:: node[B].with == x && node[B].session == y ->
		if
		:: IN_OUTBOX(z) -> accepting(k, z)
		:: else -> refuse(k)
		fi
#if defined(FIRST_TABLE)
	/* Lost welcomes, and new sessions of the same two, as they were thought of first. */
	:: node[B].with == x && node[B].session != y && y == 0 && UNUSED -> accepting(k, 0)
	:: node[B].with != x || (node[B].session != y && !(y == 0 && UNUSED)) ->
		names++;
		begin(k, names, x);
		send(B, k, WELCOME, node[B].incarnation, node[B].session, 0)
#elif defined(BEGIN_WITH_WELCOME)
	/* The welcome was lost. */
#ifdef NO_LOST_WELCOME
	:: node[B].with == x && node[B].session != y && UNUSED -> refuse(k)
#else
	:: node[B].with == x && node[B].session != y && UNUSED -> accepting(k, 0)
#endif
	/* The hello is an old one. */
	:: node[B].with == x && node[B].session != y && !UNUSED -> refuse(k)
	:: node[B].with != x ->
		begin(k, NAME(x, node[B].incarnation), x);
		send(B, k, WELCOME, node[B].incarnation, node[B].session, 0)
#else
	/* The hello is an old one. */
	:: node[B].with == x && node[B].session != y -> refuse(k)
#ifdef UNKNOWN_SESSION_CHECKED
	:: node[B].with != x && z != 0 -> refuse(k)
	:: node[B].with != x && z == 0 ->
#else
	:: node[B].with != x ->
#endif
		link[k].accepted = UNCONFIRMED;
#ifdef NEW_NAME_EACH_TIME
		names++;
		link[k].name = names;
#else
		link[k].name = NAME(x, node[B].incarnation);
#endif
		send(B, k, WELCOME, node[B].incarnation, link[k].name, 0)
#endif
	fi
}

/* A hello of another incarnation while that of the session is, as far as B can
 * tell, there. */
#ifdef REFUSED_FOR_EVER
#define DOUBTED		false
#else
#define DOUBTED		link[node[B].conn].doubted
#endif
#define DUPLICATE(k)	(link[k].accepted == AWAIT_HELLO && nempty(to_b[k]) && node[B].up && \
			 node[B].conn != k && !DOUBTED && \
			 !to_b[k]?[HELLO, eval(node[B].with), _, _])

/* Listener::greeted, Refusal::Duplicate: it was heard of lately (Peer::alive_since).
 * That is so for dead_ms at most, and the ping that B sends it is answered
 * before that, or breaks its connection: so this happens once, not for ever. */
inline duplicate(k)
{
	to_b[k]?kind, x, y, z;
	printf("B reads a hello of incarnation %d on connection %d, but %d is there (Listener::greeted)\n",
		x, k, node[B].with);
	link[node[B].conn].doubted = true;
	refuse(k)
}

/* Listener::begin, Peer::accepted: the first frame of a new session is there,
 * and is read when it has begun */
inline confirmed(k)
{
	printf("B: a first frame on connection %d (Peer::accepted)\n", k);
	begin(k, link[k].name, link[k].from);
#ifndef OTHERS_KEPT
	/* Whoever else has greeted did so earlier. */
	if
	:: link[1 - (k)].accepted == UNCONFIRMED -> close(B, 1 - (k))
	:: else
	fi
#endif
}

#define STATE(k, what)	(link[k].accepted == what)

active proctype Listener_B()
{
	mtype kind;
	byte x, y, z;

end:	do
	:: d_step { STATE(0, AWAIT_HELLO) && nempty(to_b[0]) -> greeted(0); FORGET }
	:: d_step { STATE(1, AWAIT_HELLO) && nempty(to_b[1]) -> greeted(1); FORGET }
	:: d_step { DUPLICATE(0) -> duplicate(0); FORGET }
	:: d_step { DUPLICATE(1) -> duplicate(1); FORGET }
	:: d_step { STATE(0, UNCONFIRMED) && nempty(to_b[0]) -> confirmed(0) }
	:: d_step { STATE(1, UNCONFIRMED) && nempty(to_b[1]) -> confirmed(1) }
	:: d_step { READABLE(B, 0) && nempty(to_b[0]) -> read(B, to_b[0]); FORGET }
	:: d_step { READABLE(B, 1) && nempty(to_b[1]) -> read(B, to_b[1]); FORGET }
	:: d_step { node[B].got > node[B].given -> deliver(B) }
	/* Peer::lost */
	:: d_step { node[B].conn == 0 && link[0].broken -> lost(B) }
	:: d_step { node[B].conn == 1 && link[1].broken -> lost(B) }
	/* Node::drop_pending */
	:: d_step { (STATE(0, AWAIT_HELLO) || STATE(0, UNCONFIRMED)) && link[0].broken -> close(B, 0) }
	:: d_step { (STATE(1, AWAIT_HELLO) || STATE(1, UNCONFIRMED)) && link[1].broken -> close(B, 1) }
	od
}

/* ---- Senders. */

#define MAY_PUSH(n)	(node[n].live && node[n].session != 0 && !node[n].down)

/* Outbox::fill: the next frame goes out, with an acknowledgement */
inline fill(n)
{
	node[n].filled++;
	printf("%c sends frame %d on connection %d (Outbox::fill), acknowledgement %d\n",
		ID(n), node[n].filled, node[n].conn, RECEIVED(n));
	send(n, node[n].conn, FRAME, node[n].filled, RECEIVED(n),
	     node[n].session + NAMES * ((node[n].foreign >> node[n].filled) & 1));
	node[n].told = RECEIVED(n)
}

/* Session::ping: an acknowledgement that nothing else carries */
inline ping(n)
{
	printf("%c sends a ping on connection %d, acknowledgement %d\n", ID(n), node[n].conn, RECEIVED(n));
	send(n, node[n].conn, PING, 0, RECEIVED(n), node[n].session);
	node[n].told = RECEIVED(n)
}

#define MAY_SEND(n)	(LINKED_UP(n) && !link[node[n].conn].broken && ROOM_FROM(n, node[n].conn))

/* Outbox::push */
inline push(n)
{
	node[n].pushes--;
	node[n].sent++;
	printf("%c: frame %d is accepted (Outbox::push)\n", ID(n), node[n].sent)
}

proctype Sender(byte n)
{
end:	do
	/* Outbox::push */
	:: d_step { MAY_PUSH(n) && node[n].pushes > 0 -> push(n) }
	:: d_step { MAY_SEND(n) && node[n].filled < node[n].sent -> fill(n) }
#ifndef NO_PING
	:: d_step { MAY_SEND(n) && node[n].filled == node[n].sent && node[n].told != RECEIVED(n) -> ping(n) }
#endif
#if CALLS
	/* Incoming::reply: the handler returns, and its reply is for the session of its call */
	:: d_step { n == B && node[n].running != 0 && node[n].session == node[n].running ->
		node[n].sent++; node[n].running = 0 }
#ifdef ANY_SESSION_REPLIED
	:: d_step { n == B && node[n].running != 0 && MAY_PUSH(n) && node[n].session != node[n].running ->
		node[n].sent++; node[n].foreign = node[n].foreign | (1 << node[n].sent); node[n].running = 0 }
#else
	:: d_step { n == B && node[n].running != 0 && node[n].session != node[n].running -> node[n].running = 0 }
#endif
#endif
	od
}

/* ---- The world. */

inline break_off(k)
{
	printf("connection %d breaks, or A gives it up\n", k);
	breaks--;
	link[k].broken = true
}

inline declare_down(n)
{
	printf("%c: the other is down (Peer::declare_down)\n", ID(n));
#ifdef DOWN_ENDS_SESSION
	end_session(n)
#else
	node[n].down = true
#endif
}

active proctype Network()
{
end:	do
	/* A connection breaks, wherever it stands; or an attempt is given up. */
	:: d_step { breaks > 0 && link[0].dialled && !link[0].broken -> break_off(0) }
	:: d_step { breaks > 0 && link[1].dialled && !link[1].broken -> break_off(1) }
	/* Peer::declare_down */
	:: d_step { downs > 0 && node[A].session != 0 && !node[A].up -> downs--; declare_down(A) }
	:: d_step { downs > 0 && node[B].session != 0 && !node[B].up -> downs--; declare_down(B) }
	:: break
	od
}

inline drain(k)
{
	if
	:: !link[k].dialled && link[k].accepted == AWAIT_HELLO -> close(B, k)
	:: else
	fi
}

inline start(n)
{
	printf("%c starts (Running::start_on): incarnation %d\n", ID(n), node[n].incarnation + 1);
	node[n].live = true;
	node[n].incarnation++;
#ifdef NO_OLD_HELLOS
	if
	:: (n) == A ->
		drain(0);
		drain(1)
	:: else
	fi
#endif
}

proctype Operator(byte n)
{
end:	do
	/* The machine dies. */
	:: d_step { restarts > 0 && node[n].live -> printf("%c dies\n", ID(n)); restarts--; vanish(n) }
	/* Running::drop */
	:: d_step { restarts > 0 && MAY_SEND(n) ->
		printf("%c stops and says so (Running::drop)\n", ID(n));
		restarts--;
		send(n, node[n].conn, BYE, 0, 0, 0);
		vanish(n) }
	:: d_step { !node[n].live -> start(n) }
	:: node[n].live -> break
	od
}

/* Where nothing more can happen, all is well. */
active proctype Watch()
{
end:	do
	:: timeout -> MUST(done, "WRONG: nothing more can happen, but not all is delivered and acknowledged\n"); break
	:: LINKED_UP(A) && LINKED_UP(B) && node[A].conn == node[B].conn && node[A].session != node[B].session ->
		MUST(false, "WRONG: different sessions on one connection\n")
	od
}

init {
	d_step {
		node[A].conn = NONE;
		node[B].conn = NONE;
		node[A].live = true;
		node[B].live = true;
		node[A].incarnation = 1;
		node[B].incarnation = 1;
		node[A].pushes = FRAMES;
#if CALLS
		node[B].pushes = 0;
#else
		node[B].pushes = FRAMES;
#endif
	}
	atomic {
		run Sender(A);
		run Sender(B);
		run Operator(A);
		run Operator(B)
	}
}

#ifdef LIVENESS
ltl reconnects { <> [] done }
#endif
