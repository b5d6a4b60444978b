def text(node, limit=None):
    return repr(node)[: limit or 1000]


source = latex = text
