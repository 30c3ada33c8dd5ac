/* probe: what `insula compare` runs inside an instance.
 *
 * One static program, so that it works in any image, with or without a shell.  Prints `key value` lines.
 *
 *   probe hello                 one line, at once
 *   probe identity              kernel release, boot id, how many CPUs and how much memory it sees
 *   probe syscalls              cost of one system call (getppid), ns
 *   probe reach                 how many system calls the kernel below answers
 *   probe cpu                   a fixed amount of integer work, ms
 *   probe disk DIR MIB          write (and fsync), then read a file, MiB/s
 *   probe serve PORT            take bytes from one connection after the other, for ever
 *   probe send ADDRESS PORT MIB send bytes, MiB/s
 *   probe idle                  wait for ever, using nothing
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 1 << 20, LAST_SYSCALL = 461 };

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int fail(const char *what)
{
	fprintf(stderr, "probe: %s: %s\n", what, strerror(errno));
	return 1;
}

static int identity(void)
{
	struct utsname u;
	char boot[64] = "-";
	FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

	if (f) {
		if (!fgets(boot, sizeof boot, f))
			strcpy(boot, "-");
		fclose(f);
		boot[strcspn(boot, "\n")] = 0;
	}
	uname(&u);
	printf("kernel %s\nboot_id %s\ncpus %ld\nmemory_mib %ld\n", u.release, boot, sysconf(_SC_NPROCESSORS_ONLN),
	       sysconf(_SC_PHYS_PAGES) / (1048576 / sysconf(_SC_PAGESIZE)));
	return 0;
}

static int syscalls(void)
{
	enum { CALLS = 200000 };
	double began = now();

	for (int i = 0; i < CALLS; i++)
		syscall(SYS_getppid);
	printf("syscall_ns %.1f\n", (now() - began) * 1e9 / CALLS);
	return 0;
}

/* One call with arguments that no call accepts, in a process of its own: it may end or hang it. */
static int answers(long number)
{
	int status;
	pid_t child = fork();

	if (child < 0)
		return 0;
	if (child == 0) {
		struct rlimit none = { 0, 0 };

		setrlimit(RLIMIT_CORE, &none);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		setpgid(0, 0); /* a call that signals its group reaches only itself */
		alarm(1);
		errno = 0;
		long result = syscall(number, -1L, -1L, -1L, -1L, -1L, -1L);
		_exit(result == -1 && (errno == ENOSYS || errno == EPERM) ? 1 : 0);
	}
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	/* ended by a signal: the call did something; SIGSYS is a filter that kills */
	if (WIFSIGNALED(status))
		return WTERMSIG(status) != SIGSYS;
	return WEXITSTATUS(status) == 0;
}

static int reach(void)
{
	int count = 0;

	for (long number = 0; number <= LAST_SYSCALL; number++) {
		if (number > 334 && number < 424) /* numbers that no kernel for x86-64 uses */
			continue;
		/* these do what they do whatever their arguments, for longer than a probe may wait or beyond itself */
		if (number == SYS_vhangup || number == SYS_sync || number == SYS_pause || number == SYS_fork ||
		    number == SYS_vfork || number == SYS_munlockall || number == SYS_kill) {
			count++;
			continue;
		}
		count += answers(number);
	}
	printf("reach %d\n", count);
	return 0;
}

static int cpu(void)
{
	uint64_t x = 88172645463325252ULL, sum = 0;
	double began = now();

	for (int i = 0; i < 20000000; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		sum += x;
	}
	printf("cpu_ms %.1f\nchecksum %llu\n", (now() - began) * 1e3, (unsigned long long)sum);
	return 0;
}

static int disk(const char *directory, int mib)
{
	static char piece[PIECE];
	char path[4096];
	double began, written;
	int fd;

	memset(piece, 0x5a, sizeof piece);
	snprintf(path, sizeof path, "%s/insula-probe", directory);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return fail(path);
	unlink(path);
	began = now();
	for (int i = 0; i < mib; i++)
		if (write(fd, piece, sizeof piece) != (ssize_t)sizeof piece)
			return fail("write");
	if (fsync(fd) < 0)
		return fail("fsync");
	written = now();
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	if (lseek(fd, 0, SEEK_SET) < 0)
		return fail("lseek");
	for (ssize_t n = 1; n > 0;)
		if ((n = read(fd, piece, sizeof piece)) < 0)
			return fail("read");
	printf("disk_write_mib_s %.1f\ndisk_read_mib_s %.1f\n", mib / (written - began), mib / (now() - written));
	close(fd);
	return 0;
}

static int serve(int port)
{
	static char piece[PIECE];
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	int one = 1, s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (s < 0 || setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0 ||
	    bind(s, (struct sockaddr *)&a, sizeof a) < 0 || listen(s, 8) < 0)
		return fail("listen");
	printf("serving %d\n", port);
	fflush(stdout);
	for (;;) {
		int c = accept4(s, NULL, NULL, SOCK_CLOEXEC);

		if (c < 0)
			return fail("accept");
		while (read(c, piece, sizeof piece) > 0)
			;
		if (write(c, "x", 1) < 0)
			fail("answer");
		close(c);
	}
}

static int send_bytes(const char *address, int port, int mib)
{
	static char piece[PIECE];
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	double began;
	char answer;

	if (s < 0 || inet_pton(AF_INET, address, &a.sin_addr) != 1 || connect(s, (struct sockaddr *)&a, sizeof a) < 0)
		return fail(address);
	began = now();
	for (int i = 0; i < mib; i++)
		for (size_t done = 0; done < sizeof piece;) {
			ssize_t n = write(s, piece + done, sizeof piece - done);

			if (n < 0)
				return fail("send");
			done += (size_t)n;
		}
	shutdown(s, SHUT_WR);
	if (read(s, &answer, 1) != 1)
		return fail("no answer");
	printf("net_mib_s %.1f\n", mib / (now() - began));
	close(s);
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "hello"))
		return puts("hello") < 0;
	if (!strcmp(what, "identity"))
		return identity();
	if (!strcmp(what, "syscalls"))
		return syscalls();
	if (!strcmp(what, "reach"))
		return reach();
	if (!strcmp(what, "cpu"))
		return cpu();
	if (!strcmp(what, "disk") && argc == 4)
		return disk(argv[2], atoi(argv[3]));
	if (!strcmp(what, "serve") && argc == 3)
		return serve(atoi(argv[2]));
	if (!strcmp(what, "send") && argc == 5)
		return send_bytes(argv[2], atoi(argv[3]), atoi(argv[4]));
	if (!strcmp(what, "idle")) {
		signal(SIGTERM, SIG_DFL);
		for (;;)
			pause();
	}
	fprintf(stderr, "usage: probe hello|identity|syscalls|reach|cpu|disk DIR MIB|serve PORT|send IP PORT MIB|idle\n");
	return 2;
}
