package test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha1"
	"crypto/tls"
	wire "encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/shoal-project/shoal/internal/certs"
	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker/client"
)

// evil is a peer with a proper certificate that says it has everything, and then does harm. It speaks
// the wire protocol (BEP 3, and HaveAll of BEP 6) by itself.
type evil struct {
	r      *region
	harm   func(e *evil, c *evilConn) // after the handshake, until the connection breaks
	name   string
	ip     string
	addr   string
	bundle *certs.Bundle            // for the swarm
	layers map[[20]byte]model.Layer // by info hash
	stop   func()
	tasks  sync.WaitGroup

	conns atomic.Int64 // connections so far
	sent  atomic.Int64 // bytes of blocks
}

// evilConn is a connection after the handshake.
type evilConn struct {
	net.Conn
	ctx   context.Context
	in    *bufio.Reader
	layer model.Layer
}

// evil starts the i-th, on an address of its own, since the library bans by IP. It announces itself for
// every layer of image, which was pushed as tag, and talks to the swarm with a certificate of role, ""
// for its own. dial makes it connect to the nodes too, which is what harms by asking need.
func (r *region) evil(i int, image *model.Image, tag, role string, dial bool, harm func(*evil, *evilConn)) *evil {
	t := r.t
	t.Helper()
	name, ip := fmt.Sprintf("evil-%d", i), fmt.Sprintf("127.0.0.%d", 100+i)
	node := "node/" + name
	bundle, err := certs.Load(r.issue(node))
	if err != nil {
		t.Fatal(err)
	}
	swarm, err := certs.Load(r.issue(cmp.Or(role, node)))
	if err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	track, err := client.New(client.Config{URL: "https://" + r.tracker.addr, TLS: bundle.Client(certs.Tracker)})
	if err != nil {
		t.Fatal(err)
	}
	e := &evil{r: r, harm: harm, name: name, ip: ip, addr: l.Addr().String(), bundle: swarm, layers: map[[20]byte]model.Layer{}}
	repo := openRepository(t, r.reference(tag))
	for _, layer := range image.Layers {
		hashes, err := model.FetchHashLayer(t.Context(), repo, layer)
		if err != nil {
			t.Fatal(err)
		}
		e.layers[infoHash(layer, hashes)] = layer
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	secure := tls.NewListener(l, swarm.Server(certs.Node, certs.Mirror))
	e.tasks.Go(func() { e.accept(ctx, secure) })
	e.tasks.Go(func() { e.announce(ctx, track, dial) })
	e.stop = sync.OnceFunc(func() {
		cancel()
		l.Close()
		e.tasks.Wait()
		track.Close()
	})
	t.Cleanup(e.stop)
	return e
}

// infoHash is the sha1 of the info dictionary that the nodes derive (package swarm).
func infoHash(l model.Layer, hashes model.HashLayer) [20]byte {
	length := model.PieceLength(l.Size)
	var pieces bytes.Buffer
	for _, h := range hashes.Pieces(length, l.Size) {
		pieces.Write(h[:20])
	}
	name := client.Key{Digest: l.Digest, Root: l.Root}.String()
	return sha1.Sum(fmt.Appendf(nil, "d6:lengthi%de4:name%d:%s12:piece lengthi%de6:pieces%d:%se",
		l.Size, len(name), name, length, pieces.Len(), pieces.Bytes()))
}

// announce tells the tracker, again and again, that everything is here.
func (e *evil) announce(ctx context.Context, track *client.Client, dial bool) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		for hash, l := range e.layers {
			reply, err := track.Announce(ctx, client.Key{Digest: l.Digest, Root: l.Root}, client.Announce{
				Node: e.name, Addr: e.addr, Size: l.Size, Complete: true,
			})
			if err != nil || !dial {
				continue
			}
			for _, p := range reply.Peers {
				e.tasks.Go(func() { e.dial(ctx, p.Addr, hash) })
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (e *evil) accept(ctx context.Context, l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		e.tasks.Go(func() { e.talk(ctx, conn, [20]byte{}) })
	}
}

func (e *evil) dial(ctx context.Context, addr string, hash [20]byte) {
	d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(e.ip)}}, Config: e.bundle.Client(certs.Node)}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err == nil {
		e.talk(ctx, conn, hash)
	}
}

// talk shakes hands and does harm. hash is zero where the other side begins.
func (e *evil) talk(ctx context.Context, conn net.Conn, hash [20]byte) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	in := bufio.NewReader(conn)
	begins := hash != [20]byte{}
	if begins && e.hello(conn, hash) != nil {
		return
	}
	var theirs [68]byte
	if _, err := io.ReadFull(in, theirs[:]); err != nil {
		return
	}
	copy(hash[:], theirs[28:48])
	layer, ok := e.layers[hash]
	if !ok || (!begins && e.hello(conn, hash) != nil) {
		return
	}
	e.conns.Add(1)
	c := &evilConn{conn, ctx, in, layer}
	if c.send(haveAll, nil) == nil && c.send(unchoke, nil) == nil {
		e.harm(e, c)
	}
}

func (e *evil) hello(conn net.Conn, hash [20]byte) error {
	b := append([]byte("\x13BitTorrent protocol\x00\x00\x00\x00\x00\x00\x00\x04"), hash[:]...) // the fast extension
	b = fmt.Appendf(b, "-EV0000-%012d", rand.Int64N(1e12))
	_, err := conn.Write(b)
	return err
}

// Messages of BEP 3 and BEP 6.
const (
	unchoke    = 1
	interested = 2
	have       = 4
	bitfield   = 5
	askBlock   = 6
	piece      = 7
	haveAll    = 14
	extended   = 20
)

func (c *evilConn) send(id byte, payload []byte) error {
	b := wire.BigEndian.AppendUint32(nil, uint32(1+len(payload)))
	_, err := c.Write(append(append(b, id), payload...))
	return err
}

// next returns the next request: piece, begin and length.
func (c *evilConn) next() (r [3]uint32, err error) {
	for {
		var head [4]byte
		if _, err := io.ReadFull(c.in, head[:]); err != nil {
			return r, err
		}
		n := wire.BigEndian.Uint32(head[:])
		if n == 0 {
			continue
		}
		if n > 1<<22 {
			return r, errors.New("a long message")
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(c.in, body); err != nil {
			return r, err
		}
		if body[0] == askBlock && n == 13 {
			for i := range r {
				r[i] = wire.BigEndian.Uint32(body[1+4*i:])
			}
			return r, nil
		}
	}
}

func pieceHeader(r [3]uint32) []byte {
	return wire.BigEndian.AppendUint32(wire.BigEndian.AppendUint32(nil, r[0]), r[1])
}

// garbage answers with random bytes.
func garbage(e *evil, c *evilConn) {
	for {
		r, err := c.next()
		if err != nil {
			return
		}
		block := make([]byte, r[2])
		for i := range block {
			block[i] = byte(rand.Int())
		}
		if c.send(piece, append(pieceHeader(r), block...)) != nil {
			return
		}
		e.sent.Add(int64(len(block)))
	}
}

// silent answers nothing.
func silent(_ *evil, c *evilConn) {
	for {
		if _, err := c.next(); err != nil {
			return
		}
	}
}

// trickle sends a byte a second.
func trickle(e *evil, c *evilConn) {
	r, err := c.next()
	if err != nil {
		return
	}
	head := wire.BigEndian.AppendUint32(nil, 9+r[2])
	if _, err := c.Write(append(append(head, piece), pieceHeader(r)...)); err != nil {
		return
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range r[2] {
		select {
		case <-tick.C:
		case <-c.ctx.Done():
			return
		}
		if _, err := c.Write([]byte{0}); err != nil {
			return
		}
		e.sent.Add(1)
	}
}

// unasked sends blocks that nobody asked for, so that it seems to give something.
func unasked(_ *evil, c *evilConn) {
	for i := range uint32(model.NumPieces(c.layer.Size)) {
		if c.send(piece, append(pieceHeader([3]uint32{i}), make([]byte, 64<<10)...)) != nil {
			return
		}
	}
}

// flood asks for blocks at random as fast as it can, and reads none.
func flood(_ *evil, c *evilConn) {
	if c.send(interested, nil) != nil {
		return
	}
	pieces := uint32(model.NumPieces(c.layer.Size))
	var batch []byte
	for {
		batch = batch[:0]
		for range 1000 {
			batch = wire.BigEndian.AppendUint32(batch, 13)
			batch = append(batch, askBlock)
			batch = wire.BigEndian.AppendUint32(batch, rand.Uint32N(pieces))
			batch = wire.BigEndian.AppendUint32(batch, 64<<10*rand.Uint32N(8))
			batch = wire.BigEndian.AppendUint32(batch, 64<<10)
		}
		if _, err := c.Write(batch); err != nil {
			return
		}
	}
}

// malformed sends one thing that no peer sends, another one at each connection.
func malformed(e *evil, c *evilConn) {
	u32 := func(ns ...uint32) (b []byte) {
		for _, n := range ns {
			b = wire.BigEndian.AppendUint32(b, n)
		}
		return b
	}
	tricks := []func() error{
		func() error { _, err := c.Write(u32(0xffffffff)); return err },                                       // a message of 4 GiB
		func() error { return c.send(99, []byte("what")) },                                                    // an unknown one
		func() error { return c.send(have, u32(1<<31)) },                                                      // a piece that is not
		func() error { return c.send(bitfield, bytes.Repeat([]byte{0xff}, 1<<16)) },                           // too long, and late
		func() error { return c.send(askBlock, u32(1<<30, 0, 1<<30)) },                                        // beyond the end
		func() error { return c.send(piece, u32(0, 0)) },                                                      // nobody asked
		func() error { return c.send(piece, append(u32(1<<30, 1<<30), make([]byte, 1<<17)...)) },              // nor for this
		func() error { return c.send(extended, append([]byte{0}, bytes.Repeat([]byte("d1:ad"), 10_000)...)) }, // deep bencode
		func() error { return c.send(extended, []byte("\x00d1:m99999999999:")) },                              // a long string
		func() error { return c.send(interested, []byte("with more")) },                                       // too long
		func() error { _, err := c.Write([]byte{0, 0}); return err },                                          // cut off
	}
	if tricks[int(e.conns.Load())%len(tricks)]() != nil {
		return
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(c.in, 1<<20)) // until the node hangs up
}
