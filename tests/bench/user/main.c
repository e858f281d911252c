// SPDX-License-Identifier: GPL-2.0
/*
 * Measures a peer in user space, in the words of /dev/kccm_bench:
 *
 *	bench_... serve &		says "ready" when it is
 *	bench_... call size=64 count=1000 [warm=100] [service_us=10] [trace=1]
 *	bench_... inflight size=64 ms=1000 depth=8 [service_us=10]
 *
 * With trace=1 that device is asked what the calls cost, where there is one.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "main.h"

#define MAX_DEPTH	256
/* Of calls that many make at once, the last so many are looked at. */
#define SAMPLES		(256 * 1024)
/* So many of the slowest calls are told one by one. */
#define SLOWEST		16
#define DEVICE		"/dev/kccm_bench"

void die(const char *what)
{
	fprintf(stderr, "error: %s: %s\n", what,
		errno ? strerror(errno) : "not as it should be");
	exit(1);
}

void ready(void)
{
	puts("ready");
	fflush(stdout);
}

static unsigned long long now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

void busy_wait(unsigned int us)
{
	unsigned long long end = us ? now_ns() + us * 1000ull : 0;

	while (us && now_ns() < end)
		;
}

static void *allocate(size_t count, size_t size)
{
	void *memory = calloc(count, size);

	if (!memory)
		die("memory");
	return memory;
}

/* ---- A command's words. */

#define WORDS		7

static struct {
	const char *name;
	unsigned long value, max;
} words[WORDS] = {
	{ "size", 0, MAX_SIZE },
	{ "count", 1000, 1000000 },
	{ "warm", 0, 1000000 },
	{ "service_us", 0, 1000000 },
	{ "ms", 1000, 60000 },
	{ "depth", 1, MAX_DEPTH },
	{ "trace", 0, 1 },
};

static unsigned long word(const char *name)
{
	size_t i = 0;

	while (strcmp(words[i].name, name))
		i++;
	return words[i].value;
}

static void usage(void)
{
	fprintf(stderr,
		"How to call it: serve | call size=B count=N [warm=W] [service_us=U] [trace=1]"
		" | inflight size=B ms=T depth=D [service_us=U]\n");
	exit(2);
}

static void parse(char **arguments)
{
	for (; *arguments; arguments++) {
		char *equals = strchr(*arguments, '='), *end;
		size_t i, len;

		if (!equals)
			usage();
		len = equals - *arguments;
		for (i = 0; i < WORDS; i++) {
			if (strlen(words[i].name) == len &&
			    !strncmp(words[i].name, *arguments, len))
				break;
		}
		if (i == WORDS)
			usage();
		words[i].value = strtoul(equals + 1, &end, 10);
		if (*end || end == equals + 1 || words[i].value > words[i].max)
			usage();
	}
}

/* ---- Samples. */

static int compare_times(const void *a, const void *b)
{
	unsigned long long x = *(const unsigned long long *)a, y = *(const unsigned long long *)b;

	return x < y ? -1 : x > y;
}

static unsigned long long permille(const unsigned long long *times, size_t count, unsigned int n)
{
	return times[(count - 1) * n / 1000];
}

/* ---- Calls. */

static struct line *open_line(unsigned int index)
{
	struct line *line = allocate(1, sizeof(*line));
	size_t i;

	line->size = word("size");
	line->service_us = word("service_us");
	line->args = allocate(line->size + 1, 1);
	line->reply = allocate(line->size + 1, 1);
	for (i = 0; i < line->size; i++)
		line->args[i] = (i * 7 + index) ^ (i >> 8);
	peer.open(line);
	return line;
}

static void check(const struct line *line)
{
	errno = 0;
	if (memcmp(line->args, line->reply, line->size))
		die("the reply");
}

static void make_calls(struct line *line, unsigned long count, unsigned long long *times)
{
	unsigned long long begin;
	unsigned long i;

	for (i = 0; i < count; i++) {
		begin = now_ns();
		peer.call(line);
		if (times)
			times[i] = now_ns() - begin;
	}
}

static void tell_device(int device, const char *command)
{
	ssize_t len = strlen(command);

	if (write(device, command, len) != len)
		die(command);
}

/* Makes calls, and says what the device says that they cost, for each of them. */
static void make_watched_calls(struct line *line, unsigned long count, unsigned long long *times,
			       int device, const char *begin)
{
	char answer[256], *words = answer, *word, *value;
	ssize_t len;

	tell_device(device, begin);
	make_calls(line, count, times);
	tell_device(device, "cost-end");
	len = read(device, answer, sizeof(answer) - 1);
	if (len < 0)
		die(DEVICE);
	answer[len] = '\0';
	while ((word = strsep(&words, " \n"))) {
		value = strchr(word, '=');
		if (!value)
			continue;
		*value++ = '\0';
		printf("%s=%.2f ", word, strtod(value, NULL) / count);
	}
}

static void call(void)
{
	int device = word("trace") ? open(DEVICE, O_RDWR) : -1;
	unsigned long count = word("count"), i;
	struct line *line = open_line(0);
	unsigned long long *times, sum = 0;

	if (!count)
		usage();
	times = allocate(count, sizeof(*times));
	make_calls(line, word("warm"), NULL);
	if (device < 0) {
		make_calls(line, count, times);
	} else {
		make_watched_calls(line, count, times, device, "cost-begin");
		/* Once more, for what costs time to count. */
		make_watched_calls(line, count, NULL, device, "cost-begin trace=1");
	}
	check(line);
	for (i = 0; i < count; i++)
		sum += times[i];
	qsort(times, count, sizeof(*times), compare_times);
	printf("p50_ns=%llu p99_ns=%llu p999_ns=%llu mean_ns=%llu min_ns=%llu count=%lu",
	       permille(times, count, 500), permille(times, count, 990),
	       permille(times, count, 999), sum / count, times[0], count);
	for (i = 0; i < SLOWEST && i < count; i++)
		printf(" slow%lu_ns=%llu", i, times[count - 1 - i]);
	putchar('\n');
}

/* ---- Many at once, each in a thread, with a connection of its own. */

struct caller {
	pthread_t thread;
	struct line *line;
	unsigned long long done;
	unsigned long long *times;
	size_t room, samples;
};

static bool recording, stopping;

#define LOOK(variable)		__atomic_load_n(&(variable), __ATOMIC_RELAXED)
#define TELL(variable, value)	__atomic_store_n(&(variable), value, __ATOMIC_RELAXED)

static void *call_on(void *data)
{
	struct caller *c = data;

	while (!LOOK(stopping)) {
		unsigned long long begin = now_ns();

		peer.call(c->line);
		if (LOOK(recording))
			c->times[c->samples++ % c->room] = now_ns() - begin;
		TELL(c->done, c->done + 1);
	}
	return NULL;
}

static unsigned long long progress(struct caller *callers, unsigned int count)
{
	unsigned long long sum = 0;
	unsigned int i;

	for (i = 0; i < count; i++)
		sum += LOOK(callers[i].done);
	return sum;
}

static void await_first_calls(struct caller *callers, unsigned int count)
{
	unsigned long long limit = now_ns() + 20000000000ull;
	unsigned int i;

	for (i = 0; i < count; i++) {
		while (!LOOK(callers[i].done)) {
			errno = ETIMEDOUT;
			if (now_ns() > limit)
				die("the first call");
			usleep(500);
		}
	}
}

static void inflight(void)
{
	unsigned int depth = word("depth"), i;
	struct caller callers[MAX_DEPTH] = {};
	unsigned long long *times = allocate(SAMPLES, sizeof(*times));
	unsigned long long before, begin, done, ns;
	size_t got = 0;

	if (!depth)
		usage();
	for (i = 0; i < depth; i++) {
		callers[i].line = open_line(i);
		callers[i].room = SAMPLES / depth;
		callers[i].times = times + i * callers[i].room;
	}
	for (i = 0; i < depth; i++) {
		errno = pthread_create(&callers[i].thread, NULL, call_on,
				       &callers[i]);
		if (errno)
			die("a thread");
	}
	await_first_calls(callers, depth);
	TELL(recording, true);
	before = progress(callers, depth);
	begin = now_ns();
	usleep(word("ms") * 1000);
	done = progress(callers, depth) - before;
	ns = now_ns() - begin;
	TELL(recording, false);
	TELL(stopping, true);
	for (i = 0; i < depth; i++) {
		size_t some;

		pthread_join(callers[i].thread, NULL);
		check(callers[i].line);
		some = callers[i].samples;
		if (some > callers[i].room)
			some = callers[i].room;
		memmove(times + got, callers[i].times, some * sizeof(*times));
		got += some;
	}
	errno = ETIMEDOUT;
	if (!got)
		die("no call has returned");
	qsort(times, got, sizeof(*times), compare_times);
	printf("per_s=%llu p50_ns=%llu p99_ns=%llu count=%llu\n",
	       (unsigned long long)(done * 1e9 / ns), permille(times, got, 500),
	       permille(times, got, 990), done);
}

int main(int argc, char **argv)
{
	if (argc < 2)
		usage();
	parse(argv + 2);
	if (!strcmp(argv[1], "serve"))
		peer.serve();
	else if (!strcmp(argv[1], "call"))
		call();
	else if (!strcmp(argv[1], "inflight"))
		inflight();
	else
		usage();
	return 0;
}
