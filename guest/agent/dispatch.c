/* dispatch: what comes over the control port goes to its subject, and the answer back. */
#include "channel.h"
#include "jobs.h"
#include "requests.h"
#include "streams.h"
#include "workload.h"

#include <signal.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>

/* The number of a request, found without judging the rest; -1 for none. */
static long long
find_seq (const struct message *message)
{
  struct fields fields = { (const char *) message->data, message->len };
  const char *text;
  long long seq;

  if (message->type == MSG_SECCOMP || !message->len || message->data[message->len - 1])
    return -1;
  size_t nuls = 0;
  for (size_t i = 0; i < message->len; i++)
    nuls += message->data[i] == 0;
  if (nuls % 2)
    return -1;
  text = field_text (&fields, "seq");
  return text && parse_number (text, 0, INT64_MAX, &seq) ? seq : -1;
}

static void
take_request (const struct message *message)
{
  cleanup_answer struct answer answer = { 0 };
  struct fields fields = { 0 };
  struct fault fault;
  const struct request *request = request_of (message->type);
  int place = message->stream == 0 ? ON_CONNECTION : ON_STREAM | ON_NEW_STREAM;
  long long seq = find_seq (message);
  int result = -1;

  if (!(request->where & place))
    fail (&fault, FAULT_INVALID, 0, "message %u does not go on stream %u", message->type, message->stream);
  else if ((request->where & ON_NEW_STREAM) && stream_find (message->stream))
    {
      fail (&fault, FAULT_INVALID, 0, "stream %u is in use", message->stream);
      channel_error (0, -1, &fault); /* the stream itself goes on */
      return;
    }
  else if (!request->rules || fields_open (&fields, message->data, message->len, request->rules, &fault) == 0)
    result = request->handle (message, &fields, seq, &answer, &fault);
  if (result == 0 && !(message->type == MSG_RESIZE && message->stream))
    channel_ok (message->stream, seq, &answer);
  if (result >= 0)
    return;
  channel_error (message->stream, seq, &fault);
  if (message->stream && (request->where & ON_NEW_STREAM))
    channel_send (MSG_CLOSED, message->stream, NULL, 0);
}

static void
let_go (struct stream *stream)
{
  struct job *job = stream->job;
  bool feeds = stream->feeds;

  if (feeds && !stream->in_end)
    {
      stream_feed (stream, -1);
      if (job->launched || job->kind != JOB_MAIN)
        job_detach (job);
    }
  if (job->kind == JOB_FILES && job->pid > 0 && !job->exited)
    kill (job->pid, SIGKILL);
}

static void
take_stream (struct stream *stream, const struct message *message)
{
  struct fault fault;
  uint32_t credit;

  switch (message->type)
    {
    case MSG_STDIN:
      if (!stream_input (stream, message->data, message->len))
        {
          fail (&fault, FAULT_INVALID, 0, "more than %d bytes of input without credit", STREAM_CREDIT);
          channel_error (stream->id, -1, &fault);
          let_go (stream);
          stream_end (stream);
          return;
        }
      job_input (stream->job);
      break;
    case MSG_STDIN_END:
      stream->in_end = true;
      job_input (stream->job);
      break;
    case MSG_CREDIT:
      if (message->len != sizeof credit)
        return;
      memcpy (&credit, message->data, sizeof credit);
      stream->credit += credit;
      break;
    case MSG_CLOSE:
      let_go (stream);
      stream_end (stream);
      break;
    }
}

void
on_message (const struct message *message)
{
  struct stream *stream = stream_find (message->stream);
  struct fault fault;

  switch (message->type)
    {
    case MSG_STDIN:
    case MSG_STDIN_END:
    case MSG_CREDIT:
    case MSG_CLOSE:
      if (stream) /* else it has just ended, and the host will hear of it */
        take_stream (stream, message);
      return;
    }
  if (request_of (message->type))
    {
      take_request (message);
      return;
    }
  fail (&fault, FAULT_INVALID, 0, "unknown message %u", message->type);
  channel_error (message->stream, find_seq (message), &fault);
}

void
on_synchronised (void)
{
  cleanup_answer struct answer answer = { 0 };
  static struct utsname uts; /* once: each clone of this guest has it */
  static struct sysinfo memory;
  char boot_id[64] = "";

  if (!*uts.release && uname (&uts) == 0)
    sysinfo (&memory);
  if (*machine.identity.boot_id)
    memcpy (boot_id, machine.identity.boot_id, sizeof machine.identity.boot_id);
  answer_add (&answer, "version", "2");
  answer_add (&answer, "state", "%s", machine_state_name ());
  answer_add (&answer, "boot_id", "%s", boot_id);
  answer_add (&answer, "kernel", "%s", uts.release);
  answer_add (&answer, "mem_kib", "%llu", (unsigned long long) memory.totalram * memory.mem_unit / 1024);
  channel_send (MSG_HELLO, 0, answer.data, answer.len);
}

void
on_cut (void)
{
  for (struct stream *stream; (stream = stream_any ());)
    {
      let_go (stream);
      stream_drop (stream);
    }
  jobs_mute ();
}
