package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-project/shoal/model"
	"github.com/shoal-project/shoal/tracker"
	"github.com/shoal-project/shoal/tracker/client"
)

// region's tracker: the product's own handler, called without a network and with the virtual clock.
type trackerHost struct {
	handler  http.Handler
	messages int
	bytes    int64         // of bodies, both ways
	cpu      time.Duration // of the thread in the handler: no TLS, no socket, no garbage collection
}

// epochStart is the virtual clock's zero.
var epochStart = time.Unix(1_800_000_000, 0)

// clock is the virtual time for code that is not the simulation's.
func (w *world) clock() time.Time { return epochStart.Add(w.now) }

func newTrackerHost(w *world, seed uint64) (*trackerHost, error) {
	var key [32]byte
	copy(key[:], fmt.Sprint("tracker ", seed))
	s, err := tracker.New(tracker.Config{
		Logger: slog.New(slog.DiscardHandler),
		Now:    w.clock,
		Rand:   rand.NewChaCha8(key),
		// All layers' swarms and nodes count.
		MaxSwarms: 100_000, MaxNodes: 100_000,
	})
	if err != nil {
		return nil, err
	}
	return &trackerHost{handler: s.Handler()}, nil
}

// announce makes the call.
func (t *trackerHost) announce(path string, a client.Announce) (reply client.AnnounceReply, err error) {
	body, err := json.Marshal(a)
	if err != nil {
		return reply, err
	}
	begin := threadTime()
	answer, err := t.call(http.MethodPost, path, body)
	t.cpu += threadTime() - begin
	t.messages++
	t.bytes += int64(len(body) + len(answer))
	if err != nil {
		return reply, err
	}
	return reply, json.Unmarshal(answer, &reply)
}

// swarms reads the state of all swarms.
func (t *trackerHost) swarms() (all []client.Swarm, err error) {
	answer, err := t.call(http.MethodGet, client.SwarmsPath, nil)
	if err != nil {
		return nil, err
	}
	return all, json.Unmarshal(answer, &all)
}

func (t *trackerHost) call(method, path string, body []byte) ([]byte, error) {
	answer := httptest.NewRecorder()
	t.handler.ServeHTTP(answer, httptest.NewRequest(method, path, bytes.NewReader(body))) //nolint:noctx // it never waits
	if answer.Code != http.StatusOK {
		return nil, fmt.Errorf("tracker answers %d: %s", answer.Code, answer.Body)
	}
	return answer.Body.Bytes(), nil
}

// warmUp lets the tracker's start pass, during which it grants little: a region's is not new.
func (t *trackerHost) warmUp(w *world) error {
	w.now = -time.Minute
	_, err := t.announce(announcePath(-1), client.Announce{Node: "long-ago", Addr: "10.255.255.254:7072", Size: 1, Left: true})
	w.now = 0
	t.messages, t.bytes, t.cpu = 0, 0, 0
	return err
}

// threadTime is the processor time of the calling thread, which the caller has locked.
func threadTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// announcePath is where the swarm of the layer with the given number is announced.
func announcePath(number int) string {
	sum := sha256.Sum256(fmt.Append(nil, "layer ", number))
	return client.SwarmsPath + "/" + fmt.Sprintf("%x", sum) + "-" + model.Hash(sum).String() + "/announce"
}
