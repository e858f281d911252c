// SPDX-License-Identifier: GPL-2.0
/*
 * A node that says what it is told to, however wrong, over real sockets, and
 * looks at what that has done to the KCCM on the same machine. For
 * test_hostile.py, which writes its script and judges what it prints.
 *
 * A script has one step a line; <s> is the number of a connection, <ms> how
 * long a step may take:
 *
 * cell <name>			what follows belongs together; all connections are closed
 * open <s> <from> <to> <port>	connect
 * listen <address> <port>	wait to be connected to ...
 * accept <s> <ms>		... and take one connection
 * say <s> <hex>		send these bytes
 * many <s> <count> <hex>	send them so often, as far as the other side lets it
 * zeros <s> <count>		send so many zeros, likewise
 * hear <s> <count> <ms>	read so many bytes, and print the first of them
 * acked <s> <number> <ms>	read frames until one acknowledges that number
 * called <s> <ms>		read frames until a synchronous call comes
 * reply <s> <hex>		send these bytes, with the id of that call
 * end <s> <ms>			read frames until the other side ends the connection
 * finish <s>			send no more
 * reset <s>			end the connection with a RST
 * file <ms> <path> <text>	wait until a file says this
 * write <path> <text>		write a line to a file
 * gone <address> <ms>		wait until no socket of this machine is connected to that
 *				address but our own
 * log <ms> <text>		wait for this in the log, since the cell began, and print the
 *				rest of the line
 * quiet <text>			there must be none so far
 * forget			what was in the log so far
 * demo <command>		give kccm_demo a command ...
 * demoed <ms>			... and print what came of it
 * sleep <ms>
 *
 * It prints the names of cells, what was asked for, and "FAIL" with the step
 * that has not come true; the rest of that cell is left out.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS	16
#define HEADER_LEN	40
#define CALL_SYNC	3
#define BYE		7

/* One connection, and how far the present frame of it has come. */
struct connection {
	int fd;
	unsigned char header[HEADER_LEN];
	size_t have;
	uint32_t payload;
};

static struct connection connections[CONNECTIONS];
static int listener = -1;
static int kmsg = -1;
static uint64_t call_id;
static pid_t demo_child;
static int demo_pipe = -1;

static char seen[1 << 16];	/* the log since the cell began */
static size_t seen_len;

static const char *step;	/* the present line */
static bool failed;

static void fail(const char *format, ...)
{
	va_list args;

	printf("FAIL %.200s: ", step);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	failed = true;
}

/* Of the script itself: nothing can be done about it. */
static void broken(const char *what)
{
	fail("%s", what);
	exit(2);
}

static long long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* Waits for something on a file. Returns whether it is there in time. */
static bool wait_for(int fd, short events, long long until)
{
	struct pollfd p = { .fd = fd, .events = events };
	long long left = until - now_ms();

	return poll(&p, 1, left > 0 ? left : 0) > 0;
}

/* ---- The log. */

static void read_log(void)
{
	char record[8192];
	ssize_t n;

	for (;;) {
		n = read(kmsg, record, sizeof(record) - 1);
		if (n < 0 && errno == EPIPE)
			continue;	/* some of it has been overwritten */
		if (n <= 0)
			return;
		record[n] = '\0';
		if (!strstr(record, "kccm: "))
			continue;
		if (seen_len + n + 1 > sizeof(seen))
			seen_len = 0;
		memcpy(seen + seen_len, record, n + 1);
		seen_len += n;
	}
}

static void forget_log(void)
{
	read_log();
	seen_len = 0;
	seen[0] = '\0';
}

static void do_log(long long until, const char *text)
{
	for (;;) {
		const char *found;

		read_log();
		found = strstr(seen, text);
		if (found) {
			found += strlen(text);
			printf("log %.*s\n", (int)strcspn(found, "\n"), found);
			return;
		}
		if (now_ms() >= until) {
			fail("not in the log:\n%s", seen);
			return;
		}
		wait_for(kmsg, POLLIN, until);
	}
}

static void do_quiet(const char *text)
{
	read_log();
	if (strstr(seen, text))
		fail("in the log:\n%s", seen);
}

/* ---- Connections. */

static struct connection *connection(const char *text)
{
	unsigned int s = text ? strtoul(text, NULL, 10) : CONNECTIONS;

	if (s >= CONNECTIONS)
		broken("no such connection");
	return &connections[s];
}

static void drop(struct connection *c)
{
	if (c->fd >= 0)
		close(c->fd);
	*c = (struct connection){ .fd = -1 };
}

static void drop_all(void)
{
	int i;

	for (i = 0; i < CONNECTIONS; i++)
		drop(&connections[i]);
	if (listener >= 0)
		close(listener);
	listener = -1;
}

static struct sockaddr_in address(const char *ip, const char *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET };

	if (!ip || inet_pton(AF_INET, ip, &a.sin_addr) != 1)
		broken("not an address");
	a.sin_port = htons(port ? strtoul(port, NULL, 10) : 0);
	return a;
}

static int new_socket(const struct sockaddr_in *at)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	struct timeval most = { .tv_sec = 30 };

	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof(most));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (fd < 0 || bind(fd, (const struct sockaddr *)at, sizeof(*at)))
		broken(strerror(errno));
	return fd;
}

static void do_open(struct connection *c, const char *from, const char *to, const char *port)
{
	struct sockaddr_in here = address(from, NULL), there = address(to, port);

	drop(c);
	c->fd = new_socket(&here);
	if (connect(c->fd, (struct sockaddr *)&there, sizeof(there)))
		fail("%s", strerror(errno));
}

static void do_listen(const char *at, const char *port)
{
	struct sockaddr_in here = address(at, port);

	listener = new_socket(&here);
	if (listen(listener, 8))
		broken(strerror(errno));
}

static void do_accept(struct connection *c, long long until)
{
	drop(c);
	if (wait_for(listener, POLLIN, until))
		c->fd = accept(listener, NULL, NULL);
	else
		fail("nobody has connected");
	close(listener);
	listener = -1;
}

static unsigned int nibble(char digit)
{
	const char *digits = "0123456789abcdef";
	const char *found = digit ? strchr(digits, digit) : NULL;

	if (!found)
		broken("not hexadecimal");
	return found - digits;
}

/* In place. */
static size_t from_hex(char *hex)
{
	unsigned char *out = (unsigned char *)hex;
	size_t n;

	for (n = 0; hex[2 * n]; n++)
		out[n] = nibble(hex[2 * n]) << 4 | nibble(hex[2 * n + 1]);
	return n;
}

/* The other side may have closed, which will be seen when it is read from. */
static bool put(struct connection *c, const void *bytes, size_t len)
{
	while (len) {
		ssize_t n = send(c->fd, bytes, len, MSG_NOSIGNAL);

		if (n < 0)
			return false;
		bytes = (const char *)bytes + n;
		len -= n;
	}
	return true;
}

static void do_many(struct connection *c, unsigned long count, char *hex)
{
	size_t len = from_hex(hex);

	while (count-- && put(c, hex, len))
		;
}

static void do_zeros(struct connection *c, unsigned long count)
{
	static const char zeros[1 << 16];

	while (count) {
		size_t n = count < sizeof(zeros) ? count : sizeof(zeros);

		if (!put(c, zeros, n))
			return;
		count -= n;
	}
}

static void do_hear(struct connection *c, size_t count, long long until)
{
	unsigned char bytes[1024];
	size_t have = 0, i;

	if (count > sizeof(bytes))
		broken("too much");
	while (have < count) {
		ssize_t n = -1;

		if (wait_for(c->fd, POLLIN, until))
			n = recv(c->fd, bytes + have, count - have, 0);
		if (n <= 0) {
			fail("%zu bytes and then %s", have, n ? strerror(errno) : "the end");
			return;
		}
		have += n;
	}
	printf("heard ");
	for (i = 0; i < have && i < 8; i++)
		printf("%02x", bytes[i]);
	putchar('\n');
}

static uint64_t little_endian(const unsigned char *bytes, size_t len)
{
	uint64_t value = 0;

	while (len--)
		value = value << 8 | bytes[len];
	return value;
}

enum more { FRAME, FIN, RST, TIMEOUT };

/* The next frame; its payload is skipped. */
static enum more next_frame(struct connection *c, long long until)
{
	char skipped[4096];

	for (;;) {
		ssize_t n;

		if (!wait_for(c->fd, POLLIN, until))
			return TIMEOUT;
		if (c->payload)
			n = recv(c->fd, skipped,
				 c->payload < sizeof(skipped) ? c->payload : sizeof(skipped), 0);
		else
			n = recv(c->fd, c->header + c->have, HEADER_LEN - c->have, 0);
		if (n <= 0)
			return n ? RST : FIN;
		if (c->payload) {
			c->payload -= n;
			continue;
		}
		c->have += n;
		if (c->have == HEADER_LEN) {
			c->have = 0;
			c->payload = little_endian(c->header, 4);
			return FRAME;
		}
	}
}

static const char *const ends[] = { "a frame", "fin", "rst", "a time-out" };

static void do_acked(struct connection *c, uint64_t number, long long until)
{
	enum more more;

	while ((more = next_frame(c, until)) == FRAME) {
		uint64_t ack = little_endian(c->header + 16, 8);

		if (ack == number)
			return;
		if (ack > number) {
			fail("%" PRIu64 " is acknowledged", ack);
			return;
		}
	}
	fail("%s", ends[more]);
}

static void do_called(struct connection *c, long long until)
{
	enum more more;

	while ((more = next_frame(c, until)) == FRAME) {
		if (c->header[4] == CALL_SYNC) {
			call_id = little_endian(c->header + 24, 8);
			return;
		}
	}
	fail("%s", ends[more]);
}

static void do_reply(struct connection *c, char *hex)
{
	size_t len = from_hex(hex), i;

	if (len < HEADER_LEN)
		broken("not a frame");
	for (i = 0; i < 8; i++)
		hex[24 + i] = call_id >> 8 * i;
	put(c, hex, len);
}

static void do_end(struct connection *c, long long until)
{
	int why = -1;
	enum more more;

	while ((more = next_frame(c, until)) == FRAME) {
		if (c->header[4] == BYE)
			why = little_endian(c->header + 32, 4);
	}
	if (more == TIMEOUT)
		fail("it is still open");
	else
		printf("end %s %d\n", ends[more], why);
}

static void do_reset(struct connection *c)
{
	struct linger abort = { .l_onoff = 1 };

	setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &abort, sizeof(abort));
	drop(c);
}

/* ---- Files. */

static void read_file(const char *path, char *text, size_t room)
{
	int fd = open(path, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, room - 1);

	text[n > 0 ? n : 0] = '\0';
	text[strcspn(text, "\n")] = '\0';
	if (fd >= 0)
		close(fd);
}

static void do_file(long long until, const char *path, const char *wanted)
{
	char text[256];

	for (;;) {
		read_file(path, text, sizeof(text));
		if (!strcmp(text, wanted))
			return;
		if (now_ms() >= until) {
			fail("it says \"%s\"", text);
			return;
		}
		usleep(1000);
	}
}

static void do_write(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		fail("%s", strerror(errno));
	if (fd >= 0)
		close(fd);
}

/* How many sockets are connected to an address, or would be but that it has closed. */
static int connected_to(const char *ip)
{
	struct in_addr there = address(ip, NULL).sin_addr;
	unsigned int remote, state;
	char line[256];
	int count = 0;
	FILE *file = fopen("/proc/net/tcp", "r");

	if (!file)
		broken("no /proc/net/tcp");
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, " %*d: %*x:%*x %x:%*x %x", &remote, &state) != 2)
			continue;
		/* TCP_ESTABLISHED, TCP_CLOSE_WAIT */
		if (remote == there.s_addr && (state == 1 || state == 8))
			count++;
	}
	fclose(file);
	return count;
}

static void do_gone(const char *ip, long long until)
{
	int count;

	while ((count = connected_to(ip))) {
		if (now_ms() >= until) {
			fail("%d left", count);
			return;
		}
		usleep(1000);
	}
}

/* ---- kccm_demo. */

static void end_demo(void)
{
	if (demo_child > 0) {
		kill(demo_child, SIGKILL);
		waitpid(demo_child, NULL, 0);
	}
	demo_child = 0;
	if (demo_pipe >= 0)
		close(demo_pipe);
	demo_pipe = -1;
}

static void do_demo(const char *command)
{
	int ends_of[2];

	end_demo();
	if (pipe(ends_of))
		broken("no pipe");
	fflush(stdout);
	demo_child = fork();
	if (!demo_child) {
		int fd = open("/dev/kccm_demo", O_RDWR);
		char out[512];
		ssize_t n;

		/* They are not open for longer because of this. */
		drop_all();
		if (fd < 0 || write(fd, command, strlen(command)) < 0)
			n = snprintf(out, sizeof(out), "errno %d\n", errno);
		else
			n = read(fd, out, sizeof(out));
		_exit(write(ends_of[1], out, n > 0 ? n : 0) < 0);
	}
	close(ends_of[1]);
	demo_pipe = ends_of[0];
}

static void do_demoed(long long until)
{
	char out[512];
	ssize_t n = 0;

	if (wait_for(demo_pipe, POLLIN, until))
		n = read(demo_pipe, out, sizeof(out) - 1);
	if (n <= 0) {
		fail("no result");
	} else {
		out[n] = '\0';
		out[strcspn(out, "\n")] = '\0';
		printf("demo %s\n", out);
	}
	end_demo();
}

/* ---- The script. */

static char *word(char **rest)
{
	char *found = strsep(rest, " ");

	if (!found)
		broken("too few words");
	return found;
}

static unsigned long number(char **rest)
{
	return strtoul(word(rest), NULL, 10);
}

static long long deadline(char **rest)
{
	return now_ms() + number(rest);
}

static void run(char *rest)
{
	const char *what = word(&rest), *a, *b;
	struct connection *c;
	unsigned long n;
	long long until;

#define IS(name) (!strcmp(what, name))
	if (IS("open")) {
		c = connection(word(&rest));
		a = word(&rest);
		b = word(&rest);
		do_open(c, a, b, word(&rest));
	} else if (IS("listen")) {
		a = word(&rest);
		do_listen(a, word(&rest));
	} else if (IS("accept")) {
		c = connection(word(&rest));
		do_accept(c, deadline(&rest));
	} else if (IS("say")) {
		c = connection(word(&rest));
		do_many(c, 1, word(&rest));
	} else if (IS("many")) {
		c = connection(word(&rest));
		n = number(&rest);
		do_many(c, n, word(&rest));
	} else if (IS("zeros")) {
		c = connection(word(&rest));
		do_zeros(c, number(&rest));
	} else if (IS("hear")) {
		c = connection(word(&rest));
		n = number(&rest);
		do_hear(c, n, deadline(&rest));
	} else if (IS("acked")) {
		c = connection(word(&rest));
		n = number(&rest);
		do_acked(c, n, deadline(&rest));
	} else if (IS("called")) {
		c = connection(word(&rest));
		do_called(c, deadline(&rest));
	} else if (IS("reply")) {
		c = connection(word(&rest));
		do_reply(c, word(&rest));
	} else if (IS("end")) {
		c = connection(word(&rest));
		do_end(c, deadline(&rest));
	} else if (IS("finish")) {
		shutdown(connection(word(&rest))->fd, SHUT_WR);
	} else if (IS("reset")) {
		do_reset(connection(word(&rest)));
	} else if (IS("file")) {
		until = deadline(&rest);
		a = word(&rest);
		do_file(until, a, rest ? rest : "");
	} else if (IS("write")) {
		a = word(&rest);
		do_write(a, rest ? rest : "");
	} else if (IS("gone")) {
		a = word(&rest);
		do_gone(a, deadline(&rest));
	} else if (IS("log")) {
		until = deadline(&rest);
		do_log(until, rest ? rest : "");
	} else if (IS("quiet")) {
		do_quiet(rest ? rest : "");
	} else if (IS("forget")) {
		forget_log();
	} else if (IS("demo")) {
		do_demo(rest ? rest : "");
	} else if (IS("demoed")) {
		do_demoed(deadline(&rest));
	} else if (IS("sleep")) {
		usleep(1000 * number(&rest));
	} else {
		broken("no such step");
	}
#undef IS
}

int main(int argc, char **argv)
{
	FILE *script = argc == 2 ? fopen(argv[1], "r") : NULL;
	char *line = NULL, *copy;
	size_t room = 0;
	ssize_t len;
	int i;

	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	if (!script || kmsg < 0) {
		fprintf(stderr, "usage: hostile <script>, where there is a /dev/kmsg\n");
		return 2;
	}
	lseek(kmsg, 0, SEEK_END);
	for (i = 0; i < CONNECTIONS; i++)
		connections[i].fd = -1;
	while ((len = getline(&line, &room, script)) > 0) {
		if (line[len - 1] == '\n')
			line[len - 1] = '\0';
		if (!strncmp(line, "cell ", 5)) {
			drop_all();
			end_demo();
			forget_log();
			printf("%s\n", line);
			failed = false;
		} else if (!failed) {
			copy = strdup(line);
			step = line;
			run(copy);
			free(copy);
		}
	}
	drop_all();
	printf("done\n");
	return 0;
}
