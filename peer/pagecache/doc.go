// Package pagecache brings files into the kernel's page cache, measures what of them is there, and
// keeps it there: a model that is resident is mapped by a serving process at the speed of memory.
//
// The node agent calls it for models of the tier Memory, and people by shoal warm and shoal
// residency. What it says of residency is always measured (cachestat(2), else mincore(2)), never
// concluded from having read. The cache belongs to the inode: links and bind mounts share it.
//
// A page is charged to the memory cgroup that touches it first, so that an agent with a memory limit
// would evict its own warm set: run it without one.
package pagecache
