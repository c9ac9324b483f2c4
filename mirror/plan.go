package mirror

// plan decides which bytes of a blob are fetched next, so that none is fetched twice. It is plain
// arithmetic; the fill guards it. Offsets and lengths are bytes.
type plan struct {
	size      int64
	piece     int64 // what the store marks at once
	rangeSize int64 // the longest range that is not in order, a multiple of piece
	have      []bool
	missing   int // pieces
	first     int // no piece before it is missing or free
	active    []*span
}

// span is a range that is being fetched. The bytes from start to at are written.
type span struct{ start, at, end int64 }

// want is what a waiting reader needs next.
type want struct{ off, end int64 }

func newPlan(size, piece, rangeSize int64, have func(int) bool) *plan {
	count := int((size + piece - 1) / piece)
	p := &plan{size: size, piece: piece, rangeSize: max(piece, rangeSize/piece*piece), have: make([]bool, count)}
	for i := range p.have {
		if p.have[i] = have(i); !p.have[i] {
			p.missing++
		}
	}
	return p
}

// available returns the end of the written bytes that follow off without a gap, no further than end
// and the piece that it lies in; off itself where there are none.
func (p *plan) available(off, end int64) int64 {
	for off < end {
		i := int(off / p.piece)
		if p.have[i] {
			off = p.end(i)
			continue
		}
		s := p.covering(off)
		if s == nil || s.at <= off {
			return off
		}
		off = s.at
		if s.at < s.end {
			return off
		}
	}
	return off
}

// left reports whether a piece is neither there nor being fetched, and finds the first one.
func (p *plan) left() bool {
	for p.first < len(p.have) && !p.free(p.first) {
		p.first++
	}
	return p.first < len(p.have)
}

// take returns the range to fetch next, nil where none is left. In order that is as much as length (and at
// least rangeSize) from the first missing piece on. Out of order it is what the reader lacks that has waited longest,
// unless ranges in order will be there soon. While such a reader waits, those in order are as short as its own.
func (p *plan) take(wants []*waiter, length int64) *span {
	if !p.left() {
		return nil
	}
	next := int64(p.first) * p.piece
	length = max(length, p.rangeSize)
	near := next + max(length, soon*p.piece)
	var longest *waiter // of those whose piece is free
	for _, w := range wants {
		if w.off >= p.size {
			continue
		}
		if w.off >= near {
			length = p.rangeSize
		}
		if longest == nil && p.free(int(w.off/p.piece)) {
			longest = w
		}
	}
	if longest != nil && longest.off >= near {
		i := int(longest.off / p.piece)
		return p.begin(i, min(longest.end, int64(i)*p.piece+p.rangeSize))
	}
	return p.begin(p.first, next+length)
}

// soon is how many pieces in order, or one range if that is more, a reader waits for rather than that it gets a range
// of its own: what the nodes have leased is among them.
const soon = 16

// begin takes the free pieces from i on, as far as end reaches, one at least.
func (p *plan) begin(i int, end int64) *span {
	s := &span{start: int64(i) * p.piece}
	s.at = s.start
	for ; i < len(p.have) && p.free(i); i++ {
		if off := int64(i) * p.piece; off > s.start && off >= end {
			break
		}
		s.end = p.end(i)
	}
	p.active = append(p.active, s)
	return s
}

// advance notes that n more bytes of s were written and returns the pieces that are full now, first
// to last-1. They count as written, and as held once done is called for them.
func (p *plan) advance(s *span, n int64) (first, last int) {
	first = int(s.at / p.piece)
	s.at += n
	last = int(s.at / p.piece)
	if s.at == p.size {
		last = len(p.have)
	}
	return first, last
}

// done notes that the store marked piece i.
func (p *plan) done(i int) {
	if !p.have[i] {
		p.have[i] = true
		p.missing--
	}
}

// finish ends s, fetched or given up.
func (p *plan) finish(s *span) {
	for i, other := range p.active {
		if other == s {
			p.active = append(p.active[:i], p.active[i+1:]...)
			break
		}
	}
	if s.at < s.end {
		p.first = min(p.first, int(s.at/p.piece))
	}
}

// free reports whether piece i is neither there nor being fetched.
func (p *plan) free(i int) bool { return !p.have[i] && p.covering(int64(i)*p.piece) == nil }

func (p *plan) covering(off int64) *span {
	for _, s := range p.active {
		if off >= s.start && off < s.end {
			return s
		}
	}
	return nil
}

func (p *plan) end(i int) int64 { return min(int64(i+1)*p.piece, p.size) }
