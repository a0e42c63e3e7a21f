"""What runs on the device: one job in, a stream of events out. Standard library, numpy and one runtime; Python 3.8+.

It is shipped as a zip named by its SHA-256 and run as ``python3 <sha256>``: nothing is installed, no port is opened.

The first line of standard input is the job, a JSON object::

    protocol     PROTOCOL; another number is refused
    action       "measure" or "probe"
    cache        folder of ours on the device: objects/<sha256>, jobs/, lock
    site         an extra module folder put first on the import path, or ""
    deadline_s   the agent ends itself after so many seconds, whatever the runtime does
    runtime      {"name", "module", "function"}           (probe: "runtimes", a list of these)
    files        {"model.onnx": sha256, ...}              every file of the job, by its hash in objects/
    model        which of them to load
    golden       {"inputs", "outputs": {tensor: file}, "tolerance": {"relative", "cosine"}} or null
    inputs       {tensor: file} to time with, or null: the golden input, or one made from the model's shapes
    lengths      {tensor: [[axis, length], ...]}          tile or crop before timing
    dims         {dimension name: size}                   for inputs made from shapes
    threads, affinity, repetitions, warmup_s, min_samples, min_seconds, max_seconds, busy_wait_s
    scenario     "single_stream", "paced_stream" (with hop_s) or "offline" (with batch)
    passes       after the repetitions: any of "memory_pass" and "operators", each in a process of its own
    who, lease           who asks (shown to those who wait); folders that all users of the board may write to
    id, token, offset, again, orphan_s                    of a detached job, see below

Without ``id``, standard input then stays open: it is the lifeline. When it ends, the agent kills its own process group,
so a lost connection leaves nothing behind, not even under a runtime that never prints.

With ``id`` (64 hexadecimal digits) the job is detached: a keeper in a session of its own runs it and writes its events
to ``jobs/<id>/journal``, each with ``chain``, the SHA-256 of the line before it (the first: the id). This process only
follows: it starts the job or finds it, says ``attached`` (offset, state), passes the journal on from byte ``offset``,
and ends with its standard input; the job goes on. The host sends an empty line as a heartbeat and ``fetched`` at the
end, whereupon the job's folder is removed. A job that nobody has followed for ``orphan_s`` ends itself. The action
"cancel" (with ``cache`` and ``id``) ends it at once. ``token`` tells one host's followers from another's; ``again`` says
that this host has followed the job before, so that a job that got lost is told as lost and not begun anew.

Events are JSON lines, each with ``event``; those of a repetition carry ``repetition``:

    hello     protocol, pid, pgid, python, identity (what does not change: board, CPU, memory, system), boot_id, clocks
    waiting   holder, before: who measures now, and how many are before this job
    facts     when ("before" or "after"), facts (what may change: frequencies, temperatures, load)
    clock     when ("before" or "after"), loops [{core, iterations, ns}]: see bench_remote.clock
    loaded    first_load_s, page_cache {state, pages, resident, reason}, load_s (the second, from warm pages), import_s,
              version, options, inputs, outputs, rss_bytes
    golden    first_inference_s, checks [{output, max_abs, relative, cosine, passed}]
    warmup    first_inference_s (of the golden input, where there is one), ns, ended, input
    samples   ns (at most SAMPLES_PER_EVENT a line)
    arrivals  (paced_stream, in the place of samples) scheduled_ns, start_ns, end_ns
    steady    ended, started_ns, ended_ns (monotonic clock), major_faults, cpu_s,
              machine_before, machine_after (counters of the whole machine: bench_remote.telemetry.machine)
    memory    peak_rss_bytes
    memory_pass  baseline, loaded, steady (bytes by kind), runs; or absent
    operators    operators [{op, name, ns of each run}] (at most OPERATORS_PER_EVENT a line), left_out; or absent
    telemetry hz, tick_hz, columns, rows (at most 200 a line) of bench_remote.telemetry, after the repetition's process
    runtime   (probe) name, version or absent
    done      the last word of a good job; clocks
    refused   need ("protocol", "runtime", "lock", "disk", "file", "affinity", "job"), message
    failed    kind ("golden", "signal", "exit", "deadline", "memory", "error", "lost", "orphan", "lease", "ended"), message
"""

PROTOCOL = 2
SAMPLES_PER_EVENT = 10000
OPERATORS_PER_EVENT = 500
