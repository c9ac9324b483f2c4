package client

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-project/shoal/model"
)

// Paths of the tracker's HTTP API. {key} is a Key in its text form.
const (
	SwarmsPath   = "/v1/swarms"   // GET; POST {key}/announce below it
	HashesPath   = "/v1/hashes"   // GET and PUT {key}?size=BYTES
	DesiredPath  = "/v1/desired"  // GET ?node=&revision=&wait=&epoch=, PUT
	ProgressPath = "/v1/progress" // GET, POST
)

// Limits of what a tracker takes. It answers 400 or 413 to more.
const (
	// MaxHashLayer is the longest hash layer in bytes; at 32 bytes for 512 KiB it is that of a
	// blob of 512 GiB. Nodes read longer ones from the registry.
	MaxHashLayer = 32 << 20
	// MaxWait is the longest long-poll.
	MaxWait = time.Minute
	// MaxPeers is how many peers an AnnounceReply carries at most.
	MaxPeers = 50
	// MaxWant is how many leases of a kind a tracker gives in one reply at most.
	MaxWant = 16
	// MaxDoubts is how many nodes an Announce may doubt: as many as it was told of.
	MaxDoubts = MaxPeers
	// MaxOpen and MaxStuck are how many pieces an Announce may list; the tracker looks at no more.
	MaxOpen, MaxStuck = 64, 256
)

// Key names a swarm: a blob, and the Merkle root that its pieces are checked against. The same
// digest with another root is another swarm, because the root binds bytes to the manifest that
// named it and not to the digest.
type Key struct {
	Digest digest.Digest
	Root   model.Hash
}

// String returns "<sha256 hex>-<root hex>".
func (k Key) String() string {
	// Digest.Encoded panics at a digest that is not one, which a Key may have from outside.
	_, blob, _ := strings.Cut(k.Digest.String(), ":")
	return blob + "-" + k.Root.String()
}

// ParseKey is the inverse of Key.String.
func ParseKey(s string) (Key, error) {
	blob, root, ok := strings.Cut(s, "-")
	if !ok {
		return Key{}, fmt.Errorf("swarm key %.140q: want <sha256 hex>-<root hex>", s)
	}
	d := digest.NewDigestFromEncoded(digest.SHA256, blob)
	if err := d.Validate(); err != nil {
		return Key{}, fmt.Errorf("swarm key %.140q: %w", s, err)
	}
	h, err := model.ParseHash(root)
	if err != nil {
		return Key{}, fmt.Errorf("swarm key %.140q: %w", s, err)
	}
	return Key{Digest: d, Root: h}, nil
}

// Announce is what a node says about itself in one swarm. It repeats everything each time: the
// tracker remembers nothing that a node does not repeat.
type Announce struct {
	Node string `json:"node"`
	// Addr is the IP:port on which the node accepts peers of the swarm.
	Addr string `json:"addr"`
	Zone string `json:"zone,omitempty"`
	Rack string `json:"rack,omitempty"`
	// Size is the blob's size in bytes; the number of pieces follows from it (model.NumPieces).
	Size int64 `json:"size"`
	// Have is the bitmap of the pieces that the node holds verified: piece i is bit 7-i%8 of byte
	// i/8 (BEP 3, "bitfield"). Empty means none.
	Have []byte `json:"have,omitempty"`
	// Complete stands for a Have with every piece.
	Complete bool `json:"complete,omitempty"`
	// Open are the leases that the node works on. One that it leaves out for two intervals is
	// given to others.
	Open []int `json:"open,omitempty"`
	// Stuck are pieces that peers announce and the node cannot get from them.
	Stuck []int `json:"stuck,omitempty"`
	// Doubts are nodes that give this one nothing, whatever they announce: it was lied to by them, or
	// cannot reach them, or waits in vain. What only they hold is leased to it, and none of them is named as
	// a Lease's source.
	Doubts []string `json:"doubts,omitempty"`
	// Alone says that the node cannot reach other zones: nothing is leased to it from there.
	Alone bool `json:"alone,omitempty"`
	// Want is how many leases from the origin the node can begin now, WantImports how many from other zones;
	// none of both is a mere heartbeat.
	Want        int `json:"want,omitempty"`
	WantImports int `json:"wantImports,omitempty"`
	// Left says that the node leaves the swarm: its leases are free at once.
	Left bool `json:"left,omitempty"`
	// Epoch is the one of the last reply from this tracker, "" when there was none. A tracker that
	// was just started tells from it that there was one before. Client fills it in.
	Epoch string `json:"epoch,omitempty"`
}

// AnnounceReply is the tracker's answer.
type AnnounceReply struct {
	// Epoch is random for each start of the tracker.
	Epoch string `json:"epoch"`
	// IntervalMS is how soon, in milliseconds, the node has to announce again to stay a member.
	IntervalMS int64 `json:"intervalMS"`
	// Leases are the pieces that the node, alone of its zone, should fetch now, in this order.
	Leases []Lease `json:"leases,omitempty"`
	// RetryMS is when, in milliseconds, to ask again for leases that were wanted and not given.
	RetryMS int64 `json:"retryMS,omitempty"`
	// Peers are at most MaxPeers others of the asker's zone, near ones first. What other zones have comes
	// in by leases. It is left out while nothing has changed for the asker: the node adds what comes and
	// removes nothing.
	Peers []Peer `json:"peers,omitempty"`
	// Holders is how many other live nodes hold every piece.
	Holders int `json:"holders"`
}

// Lease is a piece to fetch.
type Lease struct {
	Piece int `json:"piece"`
	// Node and Addr are those of the node in another zone to fetch it from; empty means the origin.
	Node string `json:"node,omitempty"`
	Addr string `json:"addr,omitempty"`
}

// Interval returns IntervalMS as a duration.
func (r AnnounceReply) Interval() time.Duration {
	return time.Duration(r.IntervalMS) * time.Millisecond
}

// Retry returns RetryMS as a duration.
func (r AnnounceReply) Retry() time.Duration { return time.Duration(r.RetryMS) * time.Millisecond }

// Peer is another member of a swarm, as it announced itself.
type Peer struct {
	Node     string `json:"node"`
	Addr     string `json:"addr"`
	Zone     string `json:"zone,omitempty"`
	Rack     string `json:"rack,omitempty"`
	Complete bool   `json:"complete,omitempty"`
}

// DesiredModel is a model that nodes should hold.
type DesiredModel struct {
	// Name is the model's name for people and folders, unique in a Desired.
	Name string `json:"name"`
	// Reference is registry/repository:tag or registry/repository@digest.
	Reference string `json:"reference"`
	// Nodes are those that should hold it; empty means all.
	Nodes []string `json:"nodes,omitempty"`
	// Priority orders the models of a node: higher ones first.
	Priority int `json:"priority,omitempty"`
	// Tier is where the nodes hold it: TierDisk, or TierMemory, where they also keep it in the page
	// cache. "" means TierDisk.
	Tier string `json:"tier,omitempty"`
}

// Tiers of a DesiredModel.
const (
	TierDisk   = "Disk"
	TierMemory = "Memory"
)

// Desired is the whole desired set; a controller replaces it as one.
type Desired struct {
	Models []DesiredModel `json:"models"`
}

// DesiredReply is the desired set as one node sees it, without the Nodes of its models. A reply to
// no node in particular is the whole set.
type DesiredReply struct {
	// Revision is a hash of Models: the same set has the same revision after a tracker's restart.
	Revision string         `json:"revision"`
	Models   []DesiredModel `json:"models"`
	Epoch    string         `json:"epoch"`
}

// ErrNoDesired means that the tracker does not know yet what is desired: it was started and no
// controller has written to it. That is not an empty set. A node keeps to the last set it had.
var ErrNoDesired = errors.New("tracker has no desired set yet (it waits for a controller)")

// ModelProgress is how far a node is with a model. Byte counts are of bodies.
type ModelProgress struct {
	Name        string  `json:"name"`
	Reference   string  `json:"reference"`
	State       string  `json:"state"`
	Bytes       int64   `json:"bytes"` // verified, of Total
	Total       int64   `json:"total"`
	OriginBytes int64   `json:"originBytes"`
	PeerBytes   int64   `json:"peerBytes"`
	WastedBytes int64   `json:"wastedBytes"` // received twice or wrong
	Seconds     float64 `json:"seconds"`
	// ResidentBytes is how many bytes of its files are in the node's page cache, as last measured; -1
	// where they were not.
	ResidentBytes int64  `json:"residentBytes"`
	Error         string `json:"error,omitempty"`
}

// Progress is one node's report; the tracker forgets it after two minutes without another.
type Progress struct {
	Node   string          `json:"node"`
	Models []ModelProgress `json:"models"`
	// AgeMS is how old the report is in milliseconds. The tracker sets it in its answers.
	AgeMS int64 `json:"ageMS,omitempty"`
}

// Swarm is the state of one swarm. Pieces, Held, Leased, Nodes and Complete are of now; the
// others have grown since the swarm was born.
type Swarm struct {
	Key      string  `json:"key"`
	Size     int64   `json:"size"`
	Pieces   int     `json:"pieces"`
	Held     int     `json:"held"`     // pieces that at least one live node holds
	Leased   int     `json:"leased"`   // open leases
	Nodes    int     `json:"nodes"`    // live nodes
	Complete int     `json:"complete"` // live nodes that hold every piece
	Granted  int     `json:"granted"`  // leases of pieces that nobody held
	Imports  int     `json:"imports"`  // leases of pieces that only other zones held
	Seconds  int     `json:"seconds"`  // leases given a second time at the end
	Rescues  int     `json:"rescues"`  // leases of pieces whose holders do not deliver
	Adopted  int     `json:"adopted"`  // leases taken over from a tracker before this one
	Lapsed   int     `json:"lapsed"`   // leases that the origin went past
	Dropped  int     `json:"dropped"`  // leases that a node gave up
	Lost     int     `json:"lost"`     // leases of nodes that left or died
	FetchMS  float64 `json:"fetchMS"`  // median time from a lease to its piece
}
