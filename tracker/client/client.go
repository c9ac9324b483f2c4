// Package client speaks the tracker's HTTP API: its wire types, which the tracker itself uses,
// and a Client for nodes, mirrors and controllers.
//
// A node calls Announce in each swarm it takes part in, at least once in the interval that the
// reply names and whenever it can begin another lease; it long-polls Desired and calls Report.
// Everything that it says is soft state: after a tracker's restart the next calls rebuild it. A
// node that cannot reach the tracker tries again each half second, a complete one too, so that a
// restarted tracker soon knows who holds what.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/shoal-project/shoal/model"
)

// Config says where the tracker is. Only URL has to be set.
type Config struct {
	// URL is the tracker's base address, such as https://shoal-tracker:7070.
	URL string
	// TLS is the caller's side of mTLS (certs.Bundle.Client). nil means plain text.
	TLS *tls.Config
	// Timeout bounds one call, a long-poll's wait on top of it. The default, 10 s, is far more than
	// any call needs and short enough for a node to go on without a tracker that hangs.
	Timeout time.Duration
}

// Client talks to one tracker. It is safe for concurrent use and keeps connections open.
type Client struct {
	base    *url.URL
	http    *http.Client
	timeout time.Duration
	epoch   atomic.Pointer[string]
}

// Error is an answer other than success.
type Error struct {
	Status  int    // HTTP status code
	Message string // what the tracker says is wrong
}

// Error implements error.
func (e *Error) Error() string {
	return fmt.Sprintf("tracker answers %d: %s", e.Status, e.Message)
}

// IsNotFound reports whether err is the tracker's answer that it does not have what was asked for.
func IsNotFound(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Status == http.StatusNotFound
}

// New returns a Client; it does not connect yet.
func New(cfg Config) (*Client, error) {
	base, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("tracker address: %w", err)
	}
	want := "http"
	if cfg.TLS != nil {
		want = "https"
	}
	if base.Scheme != want || base.Host == "" {
		return nil, fmt.Errorf("tracker address %q: want %s://HOST:PORT (https with certificates, http without)", cfg.URL, want)
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 10 * time.Second
	}
	return &Client{
		base:    base,
		timeout: cfg.Timeout,
		http: &http.Client{Transport: &http.Transport{
			TLSClientConfig: cfg.TLS,
			// A node announces its layers side by side; with the default of 2 most of these
			// connections would be closed after each call.
			MaxIdleConnsPerHost: 32,
			MaxConnsPerHost:     64,
			IdleConnTimeout:     90 * time.Second,
			DisableCompression:  true,
		}},
	}, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Epoch returns the epoch of the tracker's last reply, "" before the first. When it changes, the
// tracker was restarted.
func (c *Client) Epoch() string {
	if e := c.epoch.Load(); e != nil {
		return *e
	}
	return ""
}

// Announce tells the tracker what the node holds in the swarm and asks for a.Want leases. It is
// not repeated here: a lease in a lost reply is free again when the next announces do not list it.
func (c *Client) Announce(ctx context.Context, key Key, a Announce) (AnnounceReply, error) {
	if a.Epoch == "" {
		a.Epoch = c.Epoch()
	}
	var reply AnnounceReply
	if err := c.json(ctx, http.MethodPost, SwarmsPath+"/"+key.String()+"/announce", a, &reply, 0); err != nil {
		return AnnounceReply{}, fmt.Errorf("announce %s: %w", key.Digest, err)
	}
	c.saw(reply.Epoch)
	return reply, nil
}

// PutHashes offers the hash layer of a blob of size bytes to the other nodes. The tracker checks it.
func (c *Client) PutHashes(ctx context.Context, key Key, size int64, layer model.HashLayer) error {
	wire, err := layer.MarshalBinary()
	if err != nil {
		return err
	}
	req := call{method: http.MethodPut, path: hashesPath(key, size), body: wire, kind: "application/octet-stream"}
	if _, err := c.do(ctx, req); err != nil {
		return fmt.Errorf("put hash layer of %s: %w", key.Digest, err)
	}
	return nil
}

// Hashes returns the hash layer of a blob of size bytes, checked against the key's root. When the
// tracker has none (IsNotFound), the registry has.
func (c *Client) Hashes(ctx context.Context, key Key, size int64) (model.HashLayer, error) {
	wire, err := c.get(ctx, call{path: hashesPath(key, size), limit: MaxHashLayer})
	if err != nil {
		return nil, fmt.Errorf("hash layer of %s: %w", key.Digest, err)
	}
	layer, err := model.ParseHashLayer(wire, key.Root, size)
	if err != nil {
		return nil, fmt.Errorf("hash layer of %s from the tracker: %w", key.Digest, err)
	}
	return layer, nil
}

func hashesPath(key Key, size int64) string {
	return HashesPath + "/" + key.String() + "?size=" + strconv.FormatInt(size, 10)
}

// SetDesired replaces the desired set, by an empty one if d has no models. Only a controller may.
func (c *Client) SetDesired(ctx context.Context, d Desired) error {
	if d.Models == nil {
		d.Models = []DesiredModel{} // the tracker takes null for a mistake
	}
	if err := c.json(ctx, http.MethodPut, DesiredPath, d, nil, 0); err != nil {
		return fmt.Errorf("write the desired set: %w", err)
	}
	return nil
}

// Desired returns what node should hold, or the whole set for node "". It waits up to wait
// (at most MaxWait) while the set has the given revision, and then returns the same set again. It
// returns ErrNoDesired when the tracker does not know.
func (c *Client) Desired(ctx context.Context, node, revision string, wait time.Duration) (DesiredReply, error) {
	wait = min(max(wait, 0), MaxWait)
	q := url.Values{"node": {node}, "revision": {revision}, "wait": {wait.String()}, "epoch": {c.Epoch()}}
	var reply DesiredReply
	err := c.json(ctx, http.MethodGet, DesiredPath+"?"+q.Encode(), nil, &reply, wait)
	switch {
	case errors.Is(err, errNoContent):
		return DesiredReply{}, ErrNoDesired
	case err != nil:
		return DesiredReply{}, fmt.Errorf("read the desired set: %w", err)
	}
	c.saw(reply.Epoch)
	return reply, nil
}

// Report tells how far a node is. It should be repeated at least every thirty seconds.
func (c *Client) Report(ctx context.Context, p Progress) error {
	if err := c.json(ctx, http.MethodPost, ProgressPath, p, nil, 0); err != nil {
		return fmt.Errorf("report progress: %w", err)
	}
	return nil
}

// Progress returns the last report of every node, by name.
func (c *Client) Progress(ctx context.Context) ([]Progress, error) {
	var all []Progress
	if err := c.json(ctx, http.MethodGet, ProgressPath, nil, &all, 0); err != nil {
		return nil, fmt.Errorf("read progress: %w", err)
	}
	return all, nil
}

// Swarms returns the state of every swarm, by key.
func (c *Client) Swarms(ctx context.Context) ([]Swarm, error) {
	var all []Swarm
	if err := c.json(ctx, http.MethodGet, SwarmsPath, nil, &all, 0); err != nil {
		return nil, fmt.Errorf("read swarms: %w", err)
	}
	return all, nil
}

func (c *Client) saw(epoch string) {
	if epoch != "" && epoch != c.Epoch() {
		c.epoch.Store(&epoch)
	}
}

// call is one HTTP request.
type call struct {
	method, path, kind string
	body               []byte
	limit              int64         // of the answer's body in bytes, 0 for maxBody
	wait               time.Duration // a long-poll's
}

// maxBody bounds answers other than hash layers: the progress of 5,000 nodes fits.
const maxBody = 64 << 20

// errNoContent is an answer 204 to a call that expects a value.
var errNoContent = errors.New("tracker answers without content")

// json makes a call whose bodies are JSON. A nil in or out means no body.
func (c *Client) json(ctx context.Context, method, path string, in, out any, wait time.Duration) error {
	req := call{method: method, path: path, wait: wait}
	if in != nil {
		body, err := json.Marshal(in)
		if err != nil {
			return err
		}
		req.body, req.kind = body, "application/json"
	}
	send := c.do
	if method == http.MethodGet {
		send = c.get
	}
	body, err := send(ctx, req)
	if err != nil || out == nil {
		return err
	}
	if body == nil {
		return errNoContent
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}

// get is do for reads. It tries once more when the tracker closed the connection that was used.
func (c *Client) get(ctx context.Context, req call) ([]byte, error) {
	req.method = http.MethodGet
	body, err := c.do(ctx, req)
	_, answered := errors.AsType[*Error](err)
	if err == nil || answered || ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) {
		return body, err
	}
	return c.do(ctx, req)
}

// do makes a call and returns the answer's body, nil for 204.
func (c *Client) do(ctx context.Context, req call) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout+req.wait)
	defer cancel()
	target := strings.TrimSuffix(c.base.String(), "/") + req.path
	r, err := http.NewRequestWithContext(ctx, req.method, target, bytes.NewReader(req.body))
	if err != nil {
		return nil, err
	}
	if req.kind != "" {
		r.Header.Set("Content-Type", req.kind)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return nil, refusal(resp)
	}
	if resp.StatusCode == http.StatusNoContent {
		return nil, nil
	}
	limit := req.limit
	if limit == 0 {
		limit = maxBody
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(body)) > limit {
		return nil, fmt.Errorf("answer is longer than %d bytes", limit)
	}
	return body, nil
}

// refusal reads the tracker's {"error": "..."}.
func refusal(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return err
	}
	var doc struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(text, &doc) != nil || doc.Error == "" {
		doc.Error = strings.TrimSpace(string(text))
	}
	return &Error{Status: resp.StatusCode, Message: doc.Error}
}
