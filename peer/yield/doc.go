// Package yield makes transfers give way to the pods that serve. A Governor owns the node's
// download, upload and background limits: it lowers them while the pods stall and raises them
// again, so that the transfer uses what is left. cmd/shoal builds one and hands its limiters to
// the swarm, the mirror's client and the page cache.
//
// # Last in line
//
// Limits alone cannot do it: a serving thread that wakes while one of ours has the CPU waits for the
// end of its turn, however few turns we take. So the process's threads stand behind all others
// (SCHED_IDLE), as long as something is left there: on a machine whose CPUs are never idle they would
// hardly run, peers would take the node for dead, and so they go back to a small share of the CPU.
//
// # Whose stalls count
//
// The kernel counts the time in which tasks wait for CPU, disk or memory (pressure stall
// information, https://docs.kernel.org/accounting/psi.html). The machine's own counters in
// /proc/pressure are of no use here: our hashing threads wait for the CPU and our writers for the
// disk, and a governor that obeys them slows a transfer to its floor on a node where nobody is
// disturbed. The counters of a cgroup tell only of the tasks in it. So the Governor reads the
// cgroups of the pods (kubepods) and those that the operator names. In Kubernetes the agent is a
// pod as well, and stalls cannot be subtracted (they are times that overlap, not sums). Therefore
// its own branch is left out instead: the groups read are those beside the path from the named
// group down to our own. They need the v2 hierarchy of the host; an agent in a container mounts it.
//
// A node without such groups has no victims to ask. There a canary stands in for a serving thread
// where there is a right to: a thread at normal priority that naps and asks the scheduler how
// long it had to wait for a CPU after each nap (proc_pid_schedstat(5)). Threads of ours that wait
// do not move it, threads of ours that make others wait do. For disk and memory there is no such
// stand-in: a machine whose services are not in kubepods names their cgroup.
//
// # Whose fault the stalls are
//
// Pods stall without our help too: they reach their own CPU quota, or read a cold disk. At the
// first pressure the Governor therefore looks: for a second it lets through an eighth of the rate
// and compares. Stalls that stay are the pods' own and become the base that later samples are
// measured from; stalls that go were ours, and the transfer continues below the rate that caused
// them. The look is repeated while the base matters.
//
// # Limits
//
// Down by a factor that grows with the pressure, up in steps that become small near the rate that
// last caused stalls: a limit that jumps between everything and nothing would show in the pods'
// slowest requests. A transfer never stops: every limit has a floor.
//
// The limiters never carry rate.Inf but Unlimited. The BitTorrent library skips its check of the
// length of a request while the limit is rate.Inf, and panics when that request is served after
// the limit became finite, which a peer could provoke.
package yield
