/* SPDX-License-Identifier: GPL-2.0 */
/* What the peers in user space share: main.c has main() and measures. */
#ifndef _MAIN_H
#define _MAIN_H

#include <stddef.h>
#include <stdint.h>

#define MAX_SIZE	(1024 * 1024)

/* A connection, for one thread. */
struct line {
	size_t size;
	unsigned int service_us;
	char *args, *reply;	/* of MAX_SIZE bytes */
	void *private;
};

/* What a peer is; each program has one. Its functions exit when they fail. */
struct peer {
	/* Serves until it is killed, and calls ready() when it can be called. */
	void (*serve)(void);
	void (*open)(struct line *line);
	/* Makes a call with @args, and has @reply when it returns. */
	void (*call)(struct line *line);
};

extern const struct peer peer;

void ready(void);
/* Takes as long as a call is to take. */
void busy_wait(unsigned int us);
_Noreturn void die(const char *what);

#endif /* _MAIN_H */
