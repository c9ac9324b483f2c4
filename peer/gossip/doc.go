// Package gossip is how the nodes of a region find each other, and who of them takes part in which
// swarm, without any server: memberlist (SWIM with Lifeguard) carries who is alive and where; the
// inventories travel by its push/pull, and by an mTLS request to those members who say that theirs
// has changed since.
//
// cmd runs one Gossip a node and hands it to the node agent, which asks it while no tracker answers.
// Nothing of what it says is proof: a wrong inventory costs a connection, never a wrong byte.
package gossip
