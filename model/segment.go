package model

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
)

// Bounds of SegmentLength, in bytes.
const (
	minSegment = 16 << 20
	maxSegment = 256 << 20
)

// SegmentLength is the length, in bytes, of the segments in which a blob of size bytes is shared when
// it has no pieces root. Each segment is a swarm of its own, which begins when the mirror has all of
// its bytes: nodes trail the mirror by one segment, so that it is at most a 32nd of the blob, and a
// blob of 100 GB makes 400 swarms and not thousands.
func SegmentLength(size int64) int64 {
	length := int64(minSegment)
	for length < maxSegment && length*32 < size {
		length *= 2
	}
	return length
}

// NumSegments is how many segments a blob of size bytes has.
func NumSegments(size int64) int { return pieces(size, SegmentLength(size)) }

// SegmentSpan returns where segment i of a blob of size bytes lies.
func SegmentSpan(i int, size int64) (off, n int64) {
	length := SegmentLength(size)
	off = int64(i) * length
	return off, min(length, size-off)
}

// Segment describes the bytes of one segment. Whoever takes it from somebody else trusts that one,
// until the sha256 of the whole blob was checked.
type Segment struct {
	// Root is the BEP 52 root of the segment's bytes.
	Root Hash
	// Hashes is its hash layer, at 512 KiB.
	Hashes HashLayer
}

// SegmentList is what a mirror answers about a blob: the segments from the asked one on, those that
// it has by now.
type SegmentList struct {
	// Size is the blob's length in bytes.
	Size int64
	// From is the number of the first of Segments.
	From     int
	Segments []Segment
}

// wireSegments is a SegmentList as JSON; hash layers are base64.
type wireSegments struct {
	Size     int64         `json:"size"`
	From     int           `json:"from"`
	Segments []wireSegment `json:"segments"`
}

type wireSegment struct {
	Root   Hash   `json:"root"`
	Hashes string `json:"hashes"`
}

// MaxSegmentList bounds a SegmentList's JSON, in bytes: some hundred segments of at most 22 KiB.
const MaxSegmentList = 4 << 20

// MarshalJSON implements json.Marshaler.
func (l SegmentList) MarshalJSON() ([]byte, error) {
	out := wireSegments{Size: l.Size, From: l.From, Segments: []wireSegment{}}
	for _, s := range l.Segments {
		raw, err := s.Hashes.MarshalBinary()
		if err != nil {
			return nil, err
		}
		out.Segments = append(out.Segments, wireSegment{s.Root, base64.StdEncoding.EncodeToString(raw)})
	}
	return json.Marshal(out)
}

// ParseSegmentList reads a SegmentList and checks that every hash layer has its root, and that the
// segments lie within a blob of size bytes.
func ParseSegmentList(raw []byte, size int64) (SegmentList, error) {
	var in wireSegments
	if err := json.Unmarshal(raw, &in); err != nil {
		return SegmentList{}, fmt.Errorf("segments: %w", err)
	}
	if in.Size != size {
		return SegmentList{}, fmt.Errorf("segments: they are of a blob of %d bytes, this one has %d", in.Size, size)
	}
	if in.From < 0 || in.From > NumSegments(size) || len(in.Segments) > NumSegments(size)-in.From {
		return SegmentList{}, fmt.Errorf("segments: %d from number %d on, the blob has %d", len(in.Segments), in.From, NumSegments(size))
	}
	out := SegmentList{Size: size, From: in.From}
	for k, s := range in.Segments {
		wire, err := base64.StdEncoding.DecodeString(s.Hashes)
		if err != nil {
			return SegmentList{}, fmt.Errorf("segment %d: %w", in.From+k, err)
		}
		_, n := SegmentSpan(in.From+k, size)
		hashes, err := ParseHashLayer(wire, s.Root, n)
		if err != nil {
			return SegmentList{}, fmt.Errorf("segment %d: %w", in.From+k, err)
		}
		out.Segments = append(out.Segments, Segment{s.Root, slices.Clip(hashes)})
	}
	return out, nil
}
