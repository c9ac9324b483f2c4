// Package swarm moves the pieces of one blob among the nodes that want it.
//
// A node leases disjoint pieces (from the tracker, through Leaser), fetches those from the origin
// by plain HTTP ranges, and trades all others with the peers of its zone by BitTorrent. What only other zones
// have, one node of the zone fetches from one node there, on a lease too. All ways write into the same Storage and through the same check: every 16 KiB leaf is hashed as it arrives, and a
// piece counts only when its leaves fold to the full 32 bytes of its BEP 52 piece hash.
//
// The torrent is derived from the blob's hash layer alone, so all nodes arrive at the same info
// hash: a version 1 info (BEP 3) named by the digest, whose pieces are the BEP 52 piece hashes cut
// to 20 bytes. The library's own version 2 path costs two to three times the CPU.
//
// Package peer calls it. This is the only package that imports anacrolix/torrent.
package swarm
