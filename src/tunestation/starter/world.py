"""The facts that the starter knows: small tables, English and Chinese side by side.

Everything that the starter is taught or asked is derived from these tables, so a fact is
right in both languages or in neither, and an answer can be checked against the table.
"""

COLOURS: tuple[tuple[str, str, str, str], ...] = (
    ("the sky", "blue", "天空", "蓝色"),
    ("the sea", "blue", "大海", "蓝色"),
    ("grass", "green", "草", "绿色"),
    ("a leaf", "green", "树叶", "绿色"),
    ("a frog", "green", "青蛙", "绿色"),
    ("a cucumber", "green", "黄瓜", "绿色"),
    ("snow", "white", "雪", "白色"),
    ("milk", "white", "牛奶", "白色"),
    ("salt", "white", "盐", "白色"),
    ("a cloud", "white", "云", "白色"),
    ("a swan", "white", "天鹅", "白色"),
    ("coal", "black", "煤", "黑色"),
    ("a crow", "black", "乌鸦", "黑色"),
    ("the night", "black", "夜晚", "黑色"),
    ("blood", "red", "血", "红色"),
    ("a tomato", "red", "西红柿", "红色"),
    ("a strawberry", "red", "草莓", "红色"),
    ("a fire engine", "red", "消防车", "红色"),
    ("a cherry", "red", "樱桃", "红色"),
    ("a banana", "yellow", "香蕉", "黄色"),
    ("a lemon", "yellow", "柠檬", "黄色"),
    ("the sun", "yellow", "太阳", "黄色"),
    ("a carrot", "orange", "胡萝卜", "橙色"),
    ("a pumpkin", "orange", "南瓜", "橙色"),
    ("chocolate", "brown", "巧克力", "棕色"),
    ("a bear", "brown", "熊", "棕色"),
    ("an elephant", "grey", "大象", "灰色"),
    ("a mouse", "grey", "老鼠", "灰色"),
    ("a pig", "pink", "猪", "粉色"),
    ("a grape", "purple", "葡萄", "紫色"),
)
"""A thing and its colour: English thing, English colour, Chinese thing, Chinese colour."""

MIXTURES: tuple[tuple[str, str, str, str, str, str], ...] = (
    ("red", "yellow", "orange", "红色", "黄色", "橙色"),
    ("blue", "yellow", "green", "蓝色", "黄色", "绿色"),
    ("red", "blue", "purple", "红色", "蓝色", "紫色"),
    ("red", "white", "pink", "红色", "白色", "粉色"),
    ("black", "white", "grey", "黑色", "白色", "灰色"),
)
"""Two colours and what they make, in English and in Chinese."""

DAYS: tuple[tuple[str, str], ...] = (
    ("Monday", "星期一"),
    ("Tuesday", "星期二"),
    ("Wednesday", "星期三"),
    ("Thursday", "星期四"),
    ("Friday", "星期五"),
    ("Saturday", "星期六"),
    ("Sunday", "星期日"),
)
"""The days of the week, Monday first as in ISO 8601."""

MONTHS: tuple[tuple[str, str, str], ...] = (
    ("January", "一月", "31"),
    ("February", "二月", "28"),
    ("March", "三月", "31"),
    ("April", "四月", "30"),
    ("May", "五月", "31"),
    ("June", "六月", "30"),
    ("July", "七月", "31"),
    ("August", "八月", "31"),
    ("September", "九月", "30"),
    ("October", "十月", "31"),
    ("November", "十一月", "30"),
    ("December", "十二月", "31"),
)
"""The months with their number of days; February as in a common year."""

ORDINALS: tuple[tuple[str, str], ...] = (
    ("first", "第一"),
    ("second", "第二"),
    ("third", "第三"),
    ("fourth", "第四"),
    ("fifth", "第五"),
    ("sixth", "第六"),
    ("seventh", "第七"),
    ("eighth", "第八"),
    ("ninth", "第九"),
    ("tenth", "第十"),
    ("eleventh", "第十一"),
    ("twelfth", "第十二"),
)
"""Places in a row, for the months of the year and the days of the week."""

CAPITALS: tuple[tuple[str, str, str, str], ...] = (
    ("France", "Paris", "法国", "巴黎"),
    ("Germany", "Berlin", "德国", "柏林"),
    ("Italy", "Rome", "意大利", "罗马"),
    ("Spain", "Madrid", "西班牙", "马德里"),
    ("Portugal", "Lisbon", "葡萄牙", "里斯本"),
    ("Austria", "Vienna", "奥地利", "维也纳"),
    ("Greece", "Athens", "希腊", "雅典"),
    ("Poland", "Warsaw", "波兰", "华沙"),
    ("Hungary", "Budapest", "匈牙利", "布达佩斯"),
    ("Sweden", "Stockholm", "瑞典", "斯德哥尔摩"),
    ("Norway", "Oslo", "挪威", "奥斯陆"),
    ("Finland", "Helsinki", "芬兰", "赫尔辛基"),
    ("Denmark", "Copenhagen", "丹麦", "哥本哈根"),
    ("Ireland", "Dublin", "爱尔兰", "都柏林"),
    ("Belgium", "Brussels", "比利时", "布鲁塞尔"),
    ("Iceland", "Reykjavik", "冰岛", "雷克雅未克"),
    ("Russia", "Moscow", "俄罗斯", "莫斯科"),
    ("Turkey", "Ankara", "土耳其", "安卡拉"),
    ("China", "Beijing", "中国", "北京"),
    ("Japan", "Tokyo", "日本", "东京"),
    ("South Korea", "Seoul", "韩国", "首尔"),
    ("India", "New Delhi", "印度", "新德里"),
    ("Thailand", "Bangkok", "泰国", "曼谷"),
    ("Vietnam", "Hanoi", "越南", "河内"),
    ("Indonesia", "Jakarta", "印度尼西亚", "雅加达"),
    ("Mongolia", "Ulaanbaatar", "蒙古", "乌兰巴托"),
    ("Nepal", "Kathmandu", "尼泊尔", "加德满都"),
    ("Iran", "Tehran", "伊朗", "德黑兰"),
    ("Iraq", "Baghdad", "伊拉克", "巴格达"),
    ("Egypt", "Cairo", "埃及", "开罗"),
    ("Kenya", "Nairobi", "肯尼亚", "内罗毕"),
    ("Morocco", "Rabat", "摩洛哥", "拉巴特"),
    ("Nigeria", "Abuja", "尼日利亚", "阿布贾"),
    ("Canada", "Ottawa", "加拿大", "渥太华"),
    ("Mexico", "Mexico City", "墨西哥", "墨西哥城"),
    ("Cuba", "Havana", "古巴", "哈瓦那"),
    ("Brazil", "Brasilia", "巴西", "巴西利亚"),
    ("Argentina", "Buenos Aires", "阿根廷", "布宜诺斯艾利斯"),
    ("Peru", "Lima", "秘鲁", "利马"),
    ("Australia", "Canberra", "澳大利亚", "堪培拉"),
)
"""A country and its capital, in English and in Chinese."""

OPPOSITES_ENGLISH: tuple[tuple[str, str], ...] = (
    ("hot", "cold"), ("big", "small"), ("tall", "short"), ("fast", "slow"), ("happy", "sad"),
    ("old", "young"), ("open", "closed"), ("full", "empty"), ("rich", "poor"), ("strong", "weak"),
    ("clean", "dirty"), ("wet", "dry"), ("hard", "soft"), ("heavy", "light"), ("high", "low"),
    ("up", "down"), ("left", "right"), ("early", "late"), ("day", "night"), ("true", "false"),
    ("good", "bad"), ("near", "far"), ("loud", "quiet"), ("thick", "thin"), ("wide", "narrow"),
    ("inside", "outside"), ("push", "pull"), ("win", "lose"), ("buy", "sell"), ("begin", "end"),
    ("always", "never"), ("easy", "difficult"), ("cheap", "expensive"), ("deep", "shallow"),
    ("sweet", "bitter"), ("brave", "afraid"), ("love", "hate"), ("sharp", "blunt"),
)
"""Pairs that are each other's opposite; no word stands in two pairs."""

OPPOSITES_CHINESE: tuple[tuple[str, str], ...] = (
    ("热", "冷"), ("大", "小"), ("高", "矮"), ("快", "慢"), ("高兴", "难过"),
    ("老", "年轻"), ("开", "关"), ("满", "空"), ("富", "穷"), ("强", "弱"),
    ("干净", "肮脏"), ("湿", "干"), ("硬", "软"), ("重", "轻"), ("长", "短"),
    ("上", "下"), ("左", "右"), ("早", "晚"), ("白天", "黑夜"), ("真", "假"),
    ("好", "坏"), ("近", "远"), ("吵闹", "安静"), ("厚", "薄"), ("宽", "窄"),
    ("里面", "外面"), ("推", "拉"), ("胜利", "失败"), ("买", "卖"), ("开始", "结束"),
    ("前", "后"), ("容易", "困难"), ("便宜", "昂贵"), ("深", "浅"),
    ("甜", "苦"), ("勇敢", "胆小"), ("爱", "恨"), ("胖", "瘦"),
)
"""The same for Chinese; not a translation, because opposites do not translate word by word."""

NUMBER_WORDS: tuple[tuple[str, str], ...] = (
    ("zero", "零"), ("one", "一"), ("two", "二"), ("three", "三"), ("four", "四"), ("five", "五"),
    ("six", "六"), ("seven", "七"), ("eight", "八"), ("nine", "九"), ("ten", "十"),
    ("eleven", "十一"), ("twelve", "十二"), ("thirteen", "十三"), ("fourteen", "十四"),
    ("fifteen", "十五"), ("sixteen", "十六"), ("seventeen", "十七"), ("eighteen", "十八"),
    ("nineteen", "十九"), ("twenty", "二十"),
)
"""The numbers from 0 to 20 in words."""

SYSTEM_TEXTS: dict[str, tuple[str, ...]] = {
    "en": (
        "You are a helpful assistant.",
        "You are Tunestation Starter, a small model.",
        "Answer in one short sentence.",
        "Be friendly and answer briefly.",
    ),
    "zh": (
        "你是一个有用的助手。",
        "你是 Tunestation Starter，一个小模型。",
        "请用一句简短的话回答。",
        "请友好并简短地回答。",
    ),
}
"""System messages that some conversations begin with; no answer depends on them."""
